"""The items of one message of StreamClassify: what each is answered."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from edgewright.errors import EdgewrightError, InputError, OverloadedError, ServiceError
from edgewright.kinds import TEXT
from edgewright.rpc_errors import to_status
from edgewright.serve.call_record import cited, current_call
from edgewright.serve.instruments import Instruments
from edgewright.serve.models import ServedModel
from edgewright.serve.prediction_words import write
from edgewright.serve.predictor import Predicted, Predictor
from edgewright.v1 import prediction_pb2
from edgewright.v1.prediction_pb2 import (
    ItemAnswer,
    StreamClassifyRequest,
    StreamClassifyResponse,
    StreamItem,
)

# Few, so that one stream leaves room in the queue for other callers.
MESSAGES_AHEAD: Final = 4
_STATUSES: Final = {
    prediction_pb2.ITEM_STATUS_ANSWERED: "answered",
    prediction_pb2.ITEM_STATUS_INVALID: "invalid",
    prediction_pb2.ITEM_STATUS_FAILED: "failed",
}
_MAX_ID: Final = 1000  # characters; an id of megabytes need not travel back

log = logging.getLogger(__name__)


class ItemClassifier:
    """Answers messages; what it raises ends the stream."""

    def __init__(self, predictor: Predictor, instruments: Instruments) -> None:
        self._predictor = predictor
        self._instruments = instruments

    async def answer(self, request: StreamClassifyRequest, context: Any) -> StreamClassifyResponse:
        """One answer for each item, in order.

        Raises:
            InputError: too many items. What is wrong with one of them is its own answer.
            ModelNotFoundError, NotReadyError, DeadlineError: they will not be answered here.
        """
        model = self._predictor.registry.route(request.model, request.version)
        call = current_call.get()
        if call is not None:
            call.model = model
        most = self._predictor.limits.max_texts
        if len(request.items) > most:
            raise InputError(
                f"items has {len(request.items)} entries and at most {most} are taken; "
                "spread them over several messages",
                field="items",
            )
        checked = [self._checked(model, item, request.top_k) for item in request.items]
        good = [each for each in checked if not isinstance(each, InputError)]
        told = iter(await self._outcomes(model, good, context) if good else ())
        outcomes = [each if isinstance(each, InputError) else next(told) for each in checked]
        answers = [
            _worded(model, item, outcome, request.top_k)
            for item, outcome in zip(request.items, outcomes, strict=True)
        ]
        if call is not None:
            call.rows = len(answers)  # however often some of them were tried
        self._instruments.items(model, Counter(_STATUSES[each.status] for each in answers))
        return StreamClassifyResponse(model=model.name, version=model.version, answers=answers)

    def _checked(
        self, model: ServedModel, item: StreamItem, top_k: int
    ) -> str | bytes | InputError:
        """What is to be classified, or what is wrong with it."""
        kind = item.WhichOneof("content")
        if kind != model.kind.name:
            return InputError(
                f"the item holds {kind or 'nothing'}; {model.name} reads {model.kind.many}"
            )
        limits, classes = self._predictor.limits, len(model.labels)
        try:
            if model.kind is TEXT:
                limits.check([item.text], top_k, classes)
                return item.text
            limits.check_images([item.image], top_k, classes)
        except InputError as error:
            return error
        return item.image

    async def _outcomes(
        self, model: ServedModel, contents: Sequence[Any], context: Any
    ) -> list[Predicted | EdgewrightError]:
        """Computed together or, where that fails, one by one, to find the one at fault."""
        try:
            return list(await self._predicted(model, contents, context))
        except ServiceError:
            raise
        except EdgewrightError as error:
            if len(contents) == 1:
                return [error]
        return [
            outcome
            for content in contents
            for outcome in await self._outcomes(model, [content], context)
        ]

    async def _predicted(
        self, model: ServedModel, contents: Sequence[Any], context: Any
    ) -> list[Predicted]:
        """As the predictor, but a full queue is waited for: that slows its caller down."""
        predict = self._predictor.texts if model.kind is TEXT else self._predictor.images
        while True:
            try:
                return await predict(model, contents, context.time_remaining())
            except OverloadedError as error:
                await asyncio.sleep(error.retry_after_s)


def _worded(
    model: ServedModel, item: StreamItem, outcome: Predicted | EdgewrightError, top_k: int
) -> ItemAnswer:
    item_id = item.item_id[:_MAX_ID]
    if isinstance(outcome, Predicted):
        answered = ItemAnswer(item_id=item_id, status=prediction_pb2.ITEM_STATUS_ANSWERED)
        write(answered.classification, model, outcome, top_k)
        return answered
    if isinstance(outcome, InputError):
        status = prediction_pb2.ITEM_STATUS_INVALID
        # It was checked alone, so that its place in a list says nothing.
        message = to_status(outcome).message
        for kind in ("text", "image"):
            message = message.replace(f"{kind}s[0]", f"the {kind}")
    else:
        log.error("an item of %s failed", model.name, exc_info=outcome)
        status, message = prediction_pb2.ITEM_STATUS_FAILED, cited(to_status(outcome).message)
    return ItemAnswer(item_id=item_id, status=status, message=message)
