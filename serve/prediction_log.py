"""Answered predictions on their way into the store, so that feedback finds what it is about.

They wait here in bounded memory, off the request's path, for the thread that writes feedback.
Where the store cannot keep up, images are dropped and counted, then whole predictions, the oldest
first: no answer waits for its log.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import accumulate, islice
from typing import Final, Protocol

from edgewright.serve.call import Answer
from edgewright.serve.feedback_records import Prediction

LOG_BYTES: Final = 16 << 20
SAMPLED_ONE_IN: Final = 10


class LogInputs(StrEnum):
    """Which predictions are stored with the text or image file classified; all are without it."""

    OFF = "off"
    SAMPLED = "sampled"  # one in SAMPLED_ONE_IN
    ALL = "all"


class LoggedModel(Protocol):
    """What the log says of a model."""

    @property
    def name(self) -> str:
        """Its name in the repository."""
        ...

    @property
    def version(self) -> int:
        """Its version."""
        ...

    @property
    def labels(self) -> Sequence[str]:
        """Its class names, by index."""
        ...


class PredictionLog:
    """Predictions that are not stored yet, oldest first. Safe to use from any thread."""

    def __init__(
        self,
        inputs: LogInputs,
        dropped: Callable[[int, int], None],
        *,
        limit_bytes: int = LOG_BYTES,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """``dropped`` is told what was let go for want of room.

        First how many predictions, then of how many that stayed the image.
        """
        self._inputs = inputs
        self._dropped = dropped
        self._limit_bytes = limit_bytes
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._waiting: dict[str, Prediction] = {}
        self._with_image: OrderedDict[str, None] = OrderedDict()  # ids, of those that wait
        self._bytes = 0

    def add(
        self,
        model: LoggedModel,
        prediction_ids: Sequence[str],
        inputs: Sequence[str | bytes | None],
        answers: Sequence[Answer],
    ) -> None:
        """Take in the answers to one call; never waits.

        ``inputs`` are texts or image files; None is what came preprocessed, and is not kept.
        """
        now_us = self._clock_ns() // 1000
        rows = []
        for prediction_id, given, answer in zip(prediction_ids, inputs, answers, strict=True):
            kept = given if self._is_kept(prediction_id, given) else None
            row = Prediction(
                prediction_id=prediction_id,
                model=model.name,
                version=model.version,
                labels=model.labels,
                classes=answer.classes,
                scores=answer.scores,
                text=kept if isinstance(kept, str) else None,
                predicted_us=now_us,
                image=kept if isinstance(kept, bytes) else None,
            )
            # By itself it would push out all others, and then itself.
            rows.append(replace(row, image=None) if row.size > self._limit_bytes else row)
        with self._lock:
            for row in rows:
                self._waiting[row.prediction_id] = row
                self._bytes += row.size
                if row.image is not None:
                    self._with_image[row.prediction_id] = None
            images = self._drop_images()
            rows_dropped = self._drop_rows()
        if images or rows_dropped:
            self._dropped(rows_dropped, images)

    def first(self, count: int, size: int = LOG_BYTES) -> list[Prediction]:
        """The ``count`` oldest, of ``size`` bytes together but at least one; they stay."""
        with self._lock:
            rows = list(islice(self._waiting.values(), count))
        ends = accumulate(row.size for row in rows)
        return rows[: max(1, sum(end <= size for end in ends))]

    def remove(self, stored: Sequence[Prediction]) -> None:
        """Let go of what is stored."""
        with self._lock:
            for row in stored:
                waiting = self._waiting.pop(row.prediction_id, None)
                self._with_image.pop(row.prediction_id, None)
                if waiting is not None:  # perhaps without its image by now
                    self._bytes -= waiting.size

    def holds(self, prediction_id: str | None) -> bool:
        """Whether this prediction waits here."""
        with self._lock:
            return prediction_id in self._waiting

    def get(self, prediction_id: str) -> Prediction | None:
        """This prediction, where it waits here."""
        with self._lock:
            return self._waiting.get(prediction_id)

    def __len__(self) -> int:
        return len(self._waiting)

    def _is_kept(self, prediction_id: str, given: str | bytes | None) -> bool:
        if given is None or self._inputs is LogInputs.OFF:
            return False
        if isinstance(given, str) and "\0" in given:  # which PostgreSQL cannot hold
            return False
        if self._inputs is LogInputs.ALL:
            return True
        # By the id alone, so that it can be told afterwards which were meant to be kept.
        return zlib.crc32(prediction_id.encode()) % SAMPLED_ONE_IN == 0

    def _drop_images(self) -> int:
        """They are what takes room: a prediction is worth its feedback without its image, too."""
        dropped = 0
        while self._bytes > self._limit_bytes and self._with_image:
            oldest, _ = self._with_image.popitem(last=False)
            row = self._waiting[oldest]
            self._waiting[oldest] = without = replace(row, image=None)
            self._bytes -= row.size - without.size
            dropped += 1
        return dropped

    def _drop_rows(self) -> int:
        dropped = 0
        while self._bytes > self._limit_bytes:  # and none has an image any more
            oldest = next(iter(self._waiting))
            self._bytes -= self._waiting.pop(oldest).size
            dropped += 1
        return dropped
