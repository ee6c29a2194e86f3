"""What waits for a model, and how fast this server works through it, by what it measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

# Of what was known, this much counts beside the newest measurement. Sums of cost and of seconds
# fade alike, so that a large batch tells more than a small one.
_KEPT: Final = 0.9


class Stage(IntEnum):
    """What is done with an input; each stage has threads of its own."""

    DECODE = 0
    COMPUTE = 1


@dataclass
class Pace:
    """How fast one model's inputs are worked through, over all stages, which share the cores.

    Nothing is known, and 0 told, until something is measured.
    """

    seconds_per_unit: float = 0.0  # of this server, for one unit of cost (``BatchModel.cost``)
    batch_s: float = 0.0  # from taking a batch to its answers, on the thread that does it
    _cost: list[float] = field(default_factory=lambda: [0.0] * len(Stage))
    _seconds: list[float] = field(default_factory=lambda: [0.0] * len(Stage))
    _batch_s: list[float] = field(default_factory=lambda: [0.0] * len(Stage))

    def learn(self, stage: Stage, cost: int, seconds: float, threads: int) -> None:
        """One of ``threads`` took ``seconds`` for a batch of ``cost`` units, 1 or more."""
        self._cost[stage] = _KEPT * self._cost[stage] + cost
        self._seconds[stage] = _KEPT * self._seconds[stage] + seconds / threads
        self._batch_s[stage] += (1 - _KEPT) * (seconds - self._batch_s[stage])
        self.batch_s = sum(self._batch_s)
        self.seconds_per_unit = sum(
            seconds / cost for seconds, cost in zip(self._seconds, self._cost, strict=True) if cost
        )


@dataclass
class Load:
    """What waits for one model, or is being computed, and how fast that goes."""

    rows: int = 0
    cost: list[int] = field(default_factory=lambda: [0, 0])  # by ``Call.large``
    pace: Pace = field(default_factory=Pace)

    def seconds(self, large: bool) -> float:
        """Until it would be computed, if nothing else were."""
        return self.cost[large] * self.pace.seconds_per_unit
