"""Copies of answered calls, computed by a shadow version while no caller waits.

A copy is taken after its call is answered, and computed a row at a time, each only while the queue
is empty: a caller who comes meanwhile waits for one row at most. What does not fit the little room
that copies have is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.serve.call import Answer
from edgewright.serve.models import ServedModel
from edgewright.serve.registry import Lineup, Registry
from edgewright.serve.shadow_instruments import ShadowInstruments

MOST_ROWS: Final = 64  # that wait
MOST_SIZE: Final = 16 << 20  # of what they hold, in characters or bytes
_BUSY_POLL_S: Final = 0.01

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Copy:
    """One row, and what the current version made of it; names both, and holds neither."""

    name: str
    version: int
    shadow: int
    content: Any
    label: str
    score: float
    size: int

    @property
    def pair(self) -> tuple[str, str, str]:
        return self.name, str(self.version), str(self.shadow)


class Shadow:
    """Lives on the event loop; ``close`` ends it."""

    def __init__(
        self,
        registry: Registry,
        instruments: ShadowInstruments,
        busy: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``busy`` says whether a caller waits."""
        self._registry = registry
        self._instruments = instruments
        self._busy = busy
        self._clock = clock
        self._waiting: deque[_Copy] = deque()
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self._failed: set[tuple[str, str, str]] = set()

    def offer(self, model: ServedModel, inputs: Sequence[Any], answers: Sequence[Answer]) -> None:
        """Copy an answered call, where its version has a shadow and there is room; never waits."""
        lineup = self._registry.lineup(model.name)
        if lineup is None or lineup.shadow is None or lineup.versions[lineup.current] is not model:
            return
        for content, answer in zip(inputs, answers, strict=True):
            label, size = model.labels[answer.classes[0]], _size(content)
            each = _Copy(
                name=model.name,
                version=model.version,
                shadow=lineup.shadow,
                content=content,
                label=label,
                score=answer.scores[0],
                size=size,
            )
            if len(self._waiting) >= MOST_ROWS or self._size + size > MOST_SIZE:
                self._count(each, "dropped")
                continue
            self._waiting.append(each)
            self._size += size
        if self._waiting and (self._task is None or self._task.done()):
            # In no caller's context, whose record would live as long as the task.
            self._task = asyncio.get_running_loop().create_task(self._work(), context=Context())

    async def close(self) -> None:
        """Compare no more."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while self._waiting:
            if self._busy():
                await asyncio.sleep(_BUSY_POLL_S)
                continue
            copy = self._waiting.popleft()
            self._size -= copy.size
            lineup = self._lineup(copy)
            if lineup is not None:
                await self._compare(copy, lineup.versions[copy.shadow])

    def _lineup(self, copy: _Copy) -> Lineup | None:
        """Of its model, while its pair is served; then its series have not ended."""
        lineup = self._registry.lineup(copy.name)
        served = lineup and lineup.shadow == copy.shadow and copy.version in lineup.versions
        return lineup if served else None

    async def _compare(self, copy: _Copy, shadow: ServedModel) -> None:
        started = self._clock()
        try:
            scores = await asyncio.to_thread(_scores, shadow, copy.content)
        except Exception as error:  # an edge: no caller asked for this, so none is told
            if self._lineup(copy) is None:
                return
            self._count(copy, "failed")
            if copy.pair not in self._failed:
                self._failed.add(copy.pair)
                log.warning("%s version %d, the shadow, failed: %r", copy.name, copy.shadow, error)
            return
        seconds = self._clock() - started
        if self._lineup(copy) is None:
            return
        self._instruments.compute_seconds.labels(copy.name, str(copy.shadow)).observe(seconds)
        agrees = shadow.labels[int(scores.argmax())] == copy.label
        self._count(copy, "agreed" if agrees else "differed")
        known = shadow.labels.index(copy.label) if copy.label in shadow.labels else None
        score = float(scores[known]) if known is not None else 0.0
        self._instruments.score_difference.labels(*copy.pair).observe(abs(score - copy.score))

    def _count(self, copy: _Copy, outcome: str) -> None:
        self._instruments.rows.labels(*copy.pair, outcome).inc()


def _scores(shadow: ServedModel, content: Any) -> NDArray[np.float32]:
    """Scores of shape (classes,) of one text, image file or preprocessed row."""
    rows = shadow.decode([content]) if isinstance(content, bytes) else shadow.encode([content])
    scores = shadow.scores(rows)[0]
    if not np.isfinite(scores).all():
        raise ValueError("its scores are no numbers")
    return np.asarray(scores)


def _size(content: Any) -> int:
    """About what it holds: of a preprocessed row, as its arrays do."""
    if isinstance(content, str | bytes):
        return len(content)
    pixels = getattr(content, "pixels", None)
    return int(pixels.nbytes) if pixels is not None else 16 * len(content)
