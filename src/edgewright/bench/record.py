"""A whole run: whom it asked, with what, and what each load came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgewright import __version__
from edgewright.bench.config import BenchConfig
from edgewright.bench.inputs import Inputs
from edgewright.bench.requests import Requests
from edgewright.bench.result import Result
from edgewright.bench.subject import Subject


@dataclass(frozen=True)
class Record:
    """All that table, JSON and page are made of."""

    target: str
    subject: Subject
    inputs: Inputs
    requests: Requests
    config: BenchConfig
    results: Sequence[Result]
    found_rate: float | None  # that was searched for, in calls a second
    interrupted: bool
    began: str  # ISO 8601
    host: Mapping[str, Any]  # on which the load was made

    @property
    def answered(self) -> int:
        """Calls that were due while it was measured and answered, in all loads."""
        return sum(each.tally.answered for each in self.results)

    @property
    def answered_within(self) -> int:
        """Calls that were answered while it was measured, due before that though they may be."""
        return sum(sum(each.tally.answered_within) for each in self.results)

    def to_json(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        config = self.config
        return {
            "edgewright": __version__,
            "began": self.began,
            "target": self.target,
            "protocol": str(self.subject.protocol),
            "model": self.subject.to_json(),
            "inputs": self.inputs.told,
            "rows_per_call": config.rows_per_call,
            "requests": len(self.requests.messages),
            "request_bytes": round(self.requests.mean_bytes, 1),
            "duration_s": config.duration_s,
            "warm_up_s": config.warm_up_s,
            "deadline_ms": round(config.deadline_s * 1e3, 3),
            "processes": config.processes,
            "seed": config.seed,
            "host": dict(self.host),
            "results": [each.to_json() for each in self.results],
            "search": None
            if config.search is None
            else {**config.search.to_json(), "found_rate": self.found_rate},
            "interrupted": self.interrupted,
        }
