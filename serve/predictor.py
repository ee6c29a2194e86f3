"""The one way from a caller's inputs to answers, whatever protocol they came by."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any, NamedTuple

from edgewright.errors import InputError
from edgewright.kinds import IMAGE
from edgewright.model_file import FEATURES
from edgewright.preprocess import Row
from edgewright.serve.admission import Limits
from edgewright.serve.batching import Batcher
from edgewright.serve.call import Answer
from edgewright.serve.call_record import current_call
from edgewright.serve.image_decoder import ImageDecoder
from edgewright.serve.instruments import Instruments
from edgewright.serve.models import ServedModel
from edgewright.serve.prediction_ids import PredictionIds
from edgewright.serve.prediction_log import PredictionLog
from edgewright.serve.registry import Registry
from edgewright.serve.shadow import Shadow


class Predicted(NamedTuple):
    """One input's answer, and the id by which feedback names it."""

    prediction_id: str
    answer: Answer


class Predictor:
    """Checks inputs against the limits, has them computed among others', counts and logs.

    Every method of it may raise what ``rpc_errors`` maps to a status.
    """

    def __init__(
        self,
        registry: Registry,
        batcher: Batcher,
        limits: Limits,
        instruments: Instruments,
        decoder: ImageDecoder,
        log: PredictionLog | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self.registry = registry
        self.limits = limits
        self._batcher = batcher
        self._instruments = instruments
        self._decoder = decoder
        self._log = log
        self._shadow = shadow
        self._ids = PredictionIds()

    async def texts(
        self,
        model: ServedModel,
        texts: Sequence[str],
        time_left_s: float | None,
        top_k: int = 0,
        extras: Sequence[str] = (),
    ) -> list[Predicted]:
        """Answers to texts, in order; ``top_k`` is checked alone."""
        answers = await self._texts(model, texts, time_left_s, top_k, extras)
        return self._predicted(model, texts, texts, answers)

    async def images(
        self,
        model: ServedModel,
        images: Sequence[bytes],
        time_left_s: float | None,
        top_k: int = 0,
        extras: Sequence[str] = (),
    ) -> list[Predicted]:
        """Answers to image files, in order; ``top_k`` is checked alone."""
        answers = await self._images(model, images, time_left_s, top_k, extras)
        return self._predicted(model, images, images, answers)

    async def embed(
        self, model: ServedModel, inputs: Sequence[Any], time_left_s: float | None
    ) -> list[Answer]:
        """Answers to texts, or image files, that have features; no predictions are made."""
        if model.features_width is None:
            raise InputError(
                f"{model.name} gives no features: its bundle has none; make it anew with "
                "`edgewright optimize`, of an ONNX file with a second output called features",
                field="model",
            )
        answer = self._images if model.kind is IMAGE else self._texts
        return await answer(model, inputs, time_left_s, 0, (FEATURES,))

    async def rows(
        self,
        model: ServedModel,
        rows: Sequence[Row],
        time_left_s: float | None,
        extras: Sequence[str] = (),
    ) -> list[Predicted]:
        """Answers to rows that their caller has preprocessed, in order.

        How many there may be is for whoever makes them of a request to check.
        """
        _record(model, len(rows))
        answers = await self._batcher.classify(model, rows, time_left_s, extras=extras)
        return self._predicted(model, rows, [None] * len(rows), answers)

    def _texts(
        self,
        model: ServedModel,
        texts: Sequence[str],
        left_s: float | None,
        top_k: int,
        extras: Sequence[str],
    ) -> Awaitable[list[Answer]]:
        _record(model, len(texts))
        self.limits.check(texts, top_k, len(model.labels))
        return self._batcher.classify(model, texts, left_s, extras=extras)

    def _images(
        self,
        model: ServedModel,
        images: Sequence[bytes],
        left_s: float | None,
        top_k: int,
        extras: Sequence[str],
    ) -> Awaitable[list[Answer]]:
        _record(model, len(images))
        self.limits.check_images(images, top_k, len(model.labels))
        decode = partial(self._decoder.decode, model)
        return self._batcher.classify(model, images, left_s, prepare=decode, extras=extras)

    def _predicted(
        self,
        model: ServedModel,
        inputs: Sequence[str | bytes | Row],
        logged: Sequence[str | bytes | None],
        answers: Sequence[Answer],
    ) -> list[Predicted]:
        """The answers with their ids, counted, logged, and copied for the shadow."""
        ids = self._ids.take(len(answers))
        self._instruments.predicted(model, answers)
        if self._log is not None:
            self._log.add(model, ids, logged, answers)
        if self._shadow is not None:
            self._shadow.offer(model, inputs, answers)
        return list(map(Predicted, ids, answers))


def _record(model: ServedModel, rows: int) -> None:
    """Say whose call it is, and how large."""
    call = current_call.get()
    if call is not None:
        call.model = model
        call.rows += rows
