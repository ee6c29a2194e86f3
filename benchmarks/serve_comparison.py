"""Rounds of servers side by side: medians, spreads, and ratios to the best peer of a scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from benchmarks.serve_visit import Visit

Cell = Mapping[str, Any]
MEASURES: Final[Mapping[str, Callable[[Cell], float]]] = {
    "per_second": lambda cell: cell["per_second"],
    "p50_ms": lambda cell: cell["latency_ms"]["p50"],
    "p99_ms": lambda cell: cell["latency_ms"]["p99"],
}


@dataclass(frozen=True)
class Spread:
    """The median over rounds, and the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one."""
        return cls(float(np.median(values)), float(min(values)), float(max(values)))


@dataclass(frozen=True)
class ServeComparison:
    """Every visit by contender and round; a contender may lack rounds."""

    ours: str
    visits: Mapping[str, Mapping[int, Visit]]

    @property
    def peers(self) -> list[str]:
        """All but ours."""
        return [name for name in self.visits if name != self.ours]

    def rounds(self, name: str, scenario: str) -> dict[int, Cell]:
        """By round, where anything was answered."""
        found = {at: visit.cells.get(scenario) for at, visit in self.visits.get(name, {}).items()}
        return {at: cell for at, cell in found.items() if cell and cell["answered"]}

    def spread(self, name: str, scenario: str, measure: str) -> Spread | None:
        """None of a contender that answered nothing."""
        cells = self.rounds(name, scenario).values()
        return Spread.of([MEASURES[measure](each) for each in cells]) if cells else None

    def best_peer(self, scenario: str) -> str | None:
        """The one with the highest throughput, by its median; None without any."""
        rates = {name: self.spread(name, scenario, "per_second") for name in self.peers}
        answered = {name: found.median for name, found in rates.items() if found}
        return max(answered, key=lambda name: answered[name]) if answered else None

    def ratio(self, peer: str, scenario: str, measure: str) -> Spread | None:
        """Ours over the peer's, round by round."""
        mine, theirs = self.rounds(self.ours, scenario), self.rounds(peer, scenario)
        of = MEASURES[measure]
        both = [of(mine[at]) / of(theirs[at]) for at in mine if at in theirs]
        return Spread.of(both) if both else None

    def errors(self, name: str, scenario: str) -> int:
        """Of all rounds."""
        found = [visit.cells.get(scenario) for visit in self.visits[name].values()]
        return sum(sum(cell["errors"].values()) for cell in found if cell)

    def to_json(self, scenarios: Sequence[str]) -> dict[str, Any]:
        """Medians, ratios to the best peer, and every visit."""
        return {
            "ours": self.ours,
            "servers": {name: self._server(name) for name in self.visits},
            "scenarios": {each: self._scenario(each) for each in scenarios},
            "visits": {
                name: {str(at): visit.to_json() for at, visit in rounds.items()}
                for name, rounds in self.visits.items()
            },
        }

    def _server(self, name: str) -> dict[str, Any]:
        visits = self.visits[name].values()
        return {
            "ready_s": asdict(Spread.of([each.ready_s for each in visits])),
            "memory_mib": asdict(Spread.of([each.memory_mib for each in visits])),
        }

    def _scenario(self, scenario: str) -> dict[str, Any]:
        best = self.best_peer(scenario)
        return {
            "best_peer": best,
            "ratios": {
                measure: ratio and asdict(ratio)
                for measure in MEASURES
                if (ratio := best and self.ratio(best, scenario, measure)) is not None
            },
            "contenders": {
                name: {
                    **{
                        measure: found and asdict(found)
                        for measure in MEASURES
                        if (found := self.spread(name, scenario, measure)) is not None
                    },
                    "errors": self.errors(name, scenario),
                }
                for name in self.visits
            },
        }
