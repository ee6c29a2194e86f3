"""Classification of many small items over one stream, without protobuf in sight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgewright.answers import Classification, classification
from edgewright.call_inputs import MAX_TEXT_BYTES, check_name, check_range, check_unicode, chunks
from edgewright.errors import EdgewrightError, InputError, ServiceError
from edgewright.v1 import prediction_pb2

Numbered = tuple[int, str | bytes]  # an item and its place in the caller's order

_ANSWERED: Final = prediction_pb2.ITEM_STATUS_ANSWERED
_INVALID: Final = prediction_pb2.ITEM_STATUS_INVALID


@dataclass(frozen=True)
class StreamedAnswer:
    """What became of one item: a classification or, where it has none, an error."""

    index: int  # of the item, from 0
    classification: Classification | None
    error: EdgewrightError | None  # an InputError where the item is at fault

    def result(self) -> Classification:
        """The classification; raises ``error`` where there is none."""
        if self.classification is None:
            raise self.error or EdgewrightError(f"item {self.index} has no answer")
        return self.classification


class ClassifyForm:
    """The messages of StreamClassify; items are numbered as they come."""

    def __init__(self, model: str, version: int, top_k: int) -> None:
        """InputError where ``version`` or ``top_k`` is out of range, or ``model`` no Unicode."""
        check_name(model)
        check_range("version", version, 2**63)
        check_range("top_k", top_k, 2**31)
        self._asked: dict[str, Any] = {"model": model, "version": version, "top_k": top_k}
        self._count = 0

    def chunks(self, entries: Sequence[str | bytes]) -> Iterator[list[Numbered]]:
        """The items of each message, with their numbers.

        Raises:
            InputError: one that is neither a text nor the bytes of an image, or no Unicode.
        """
        numbered = list(enumerate(entries, self._count))
        self._count += len(numbered)
        for index, item in numbered:
            _check(index, item)
        return chunks(numbered, lambda each: len(each[1]), MAX_TEXT_BYTES) if numbered else iter(())

    def request(self, chunk: Sequence[Numbered]) -> prediction_pb2.StreamClassifyRequest:
        """The message of these items."""
        items = [
            prediction_pb2.StreamItem(item_id=str(index), text=item)
            if isinstance(item, str)
            else prediction_pb2.StreamItem(item_id=str(index), image=item)
            for index, item in chunk
        ]
        return prediction_pb2.StreamClassifyRequest(items=items, **self._asked)

    def answers(
        self, response: Any, chunk: Sequence[Numbered], target: str
    ) -> list[StreamedAnswer]:
        """Their answers, in order; ServiceError where they are those of other items."""
        given = [each.item_id for each in response.answers]
        if given != [str(index) for index, _ in chunk]:
            raise ServiceError(
                f"{target} gave {len(given)} answers, and they are not those of the {len(chunk)} "
                "items that were sent; the server and this client do not fit together"
            )
        pairs = zip(chunk, response.answers, strict=True)
        return [_answer(index, message) for (index, _), message in pairs]


def _answer(index: int, message: Any) -> StreamedAnswer:
    if message.status == _ANSWERED:
        return StreamedAnswer(index, classification(message.classification), None)
    kind = InputError if message.status == _INVALID else EdgewrightError
    return StreamedAnswer(index, None, kind(f"item {index}: {message.message}"))


def _check(index: int, item: object) -> None:
    if isinstance(item, bytes):
        return
    if not isinstance(item, str):
        raise InputError(
            f"item {index} is a {type(item).__name__}; a str or the bytes of an image file is "
            "expected"
        )
    check_unicode(f"item {index}", item)
