"""Which calls may wait for compute: good input, and room in the queue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgewright.errors import InputError, OverloadedError

_RETRY_FLOOR_S = 0.05
_RETRY_CEILING_S = 5.0


@dataclass(frozen=True)
class Limits:
    """The largest call that is taken."""

    max_texts: int
    max_text_chars: int

    def check(self, texts: Sequence[str], top_k: int, classes: int) -> None:
        """Raise InputError, naming the request's field, for what no model should be asked."""
        self._check_count("text", len(texts))
        for index, text in enumerate(texts):
            self._check_text(index, text)
        self._check_top_k(top_k, classes)

    def check_images(self, images: Sequence[bytes], top_k: int, classes: int) -> None:
        """The same for images; whether they can be decoded shows when they are."""
        self._check_count("image", len(images))
        for index, image in enumerate(images):
            if not image:
                field = f"images[{index}]"
                raise InputError(f"{field} is empty; leave it out of the call", field=field)
        self._check_top_k(top_k, classes)

    def _check_count(self, kind: str, count: int) -> None:
        field = f"{kind}s"
        if not count:
            raise InputError(f"{field} is empty; give at least one {kind}", field=field)
        if count > self.max_texts:
            raise InputError(
                f"{field} has {count} entries and at most {self.max_texts} are taken; "
                "split the call, or raise --max-texts of the server",
                field=field,
            )

    def _check_top_k(self, top_k: int, classes: int) -> None:
        if not 0 <= top_k <= classes:
            raise InputError(
                f"top_k is {top_k}; it must be 0 (all) to {classes}, the number of classes",
                field="top_k",
            )

    def _check_text(self, index: int, text: str) -> None:
        field = f"texts[{index}]"
        if not text or text.isspace():
            raise InputError(f"{field} is empty; leave it out of the call", field=field)
        if len(text) > self.max_text_chars:
            raise InputError(
                f"{field} has {len(text)} characters and at most {self.max_text_chars} are taken; "
                "shorten it, or raise --max-text-chars of the server",
                field=field,
            )


class Queue:
    """Counts the rows between admission and answer, on the event loop's thread alone.

    ``seconds_per_row`` tells how fast compute is now; from it follows when to try again.
    """

    def __init__(self, limit: int, seconds_per_row: Callable[[], float]) -> None:
        self.rows = 0
        self._limit = limit
        self._seconds_per_row = seconds_per_row

    def enter(self, rows: int) -> None:
        """Count ``rows`` in, or raise OverloadedError where they would not fit."""
        if self.rows + rows > self._limit:
            wait_s = self.rows * self._seconds_per_row()
            raise OverloadedError(
                f"{self.rows} rows wait and {self._limit} may; try again later, "
                "ask another replica, or raise --queue-size of the server",
                retry_after_s=min(max(wait_s / 2, _RETRY_FLOOR_S), _RETRY_CEILING_S),
            )
        self.rows += rows

    def leave(self, rows: int) -> None:
        """Count ``rows`` out."""
        self.rows -= rows
