"""What the store keeps: feedback entries and predictions; times in microseconds since 1970."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

# Beside its strings: what an object, its row and its place in a queue take, roughly.
_OVERHEAD_BYTES: Final = 500


class Outcome(Enum):
    """What became of an entry; all of these are durable."""

    STORED = "stored"
    DUPLICATE = "duplicate"  # an entry of this id was there before
    UNMATCHED = "unmatched"  # stored; no prediction of that id has been logged so far


@dataclass(frozen=True, slots=True)
class Entry:
    """One checked feedback entry."""

    entry_id: str
    prediction_id: str | None
    label: str
    text: str | None
    note: str | None
    model: str | None
    created_us: int  # by the caller's clock
    received_us: int  # by ours; decides which of several entries is the last

    @property
    def size(self) -> int:
        """Bytes of memory it holds, roughly."""
        return _OVERHEAD_BYTES + len(self.text or "") + len(self.note or "")


class Logged(NamedTuple):
    """What feedback on a logged prediction is checked by, whoever is served by now."""

    model: str
    labels: Collection[str]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answered input; ``labels``, ``classes`` and ``scores`` are shared with the answer."""

    prediction_id: str
    model: str
    version: int
    labels: Sequence[str]  # of the model, by index
    classes: Sequence[int]  # best first
    scores: Sequence[float]  # of ``classes``
    text: str | None  # None where inputs are not logged, or are no texts
    predicted_us: int
    image: bytes | None = None  # the file as it came; None where inputs are not logged, or no files

    @property
    def size(self) -> int:
        """Bytes of memory it holds, roughly."""
        content = len(self.text or "") + len(self.image or b"")
        return _OVERHEAD_BYTES + 32 * len(self.classes) + content
