"""The loads of a run, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from edgewright.bench.config import BenchConfig, Closed, Load, Open, Search
from edgewright.bench.find_rate import highest_rate, holds
from edgewright.bench.result import Result

# Callers of the closed loop that tells where a search for a rate begins.
FIRST_CALLERS: Final = 32


@dataclass
class Sweep:
    """Makes loads and keeps their results, until one is broken off."""

    make: Callable[[Load], Result]
    results: list[Result] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        """Whether the user has had enough."""
        return bool(self.results) and self.results[-1].measured.interrupted

    def run(self, config: BenchConfig) -> float | None:
        """Make every load; the rate that was searched for, where one was and there is one."""
        self._each(config.loads)
        if config.search is None:
            return None
        self._each([Closed(max(FIRST_CALLERS, config.processes))])
        first = self.results[-1].calls_per_s
        search = config.search
        return highest_rate(lambda rate: self._attempt(rate, search), first)

    def _attempt(self, rate: float, search: Search) -> bool | None:
        if not self.interrupted:
            self._each([Open(rate, search.arrivals)])
        return None if self.interrupted else holds(self.results[-1], search)

    def _each(self, loads: Sequence[Load]) -> None:
        for load in loads:
            if self.interrupted:
                return
            self.results.append(self.make(load))
