"""What ``edgewright bench`` can be told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from edgewright.bench.arrivals import Arrivals
from edgewright.errors import ConfigError

MAX_RATE: Final = 100_000.0
MAX_CALLERS: Final = 10_000
MAX_PROCESSES: Final = 64
LONGEST_S: Final = 3600.0  # of a call
MAX_ROWS: Final = 100_000  # in one call: far more than servers take
_DIGITS: Final = 20  # of a number that is told


class Protocol(StrEnum):
    """What is spoken with the server."""

    EDGEWRIGHT = "edgewright"
    OIP = "oip"  # the Open Inference Protocol, version 2: KServe's and Triton's


@dataclass(frozen=True)
class Closed:
    """So many callers, each with one call at a time."""

    callers: int

    def __str__(self) -> str:
        return f"{self.callers} {'caller' if self.callers == 1 else 'callers'}"

    def share(self, index: int, of: int) -> Closed:
        """The callers that one of several processes has."""
        return Closed(self.callers // of + (index < self.callers % of))

    def to_json(self) -> dict[str, Any]:
        """As results name it."""
        return {"loop": "closed", "callers": self.callers}


@dataclass(frozen=True)
class Open:
    """Calls that are due by a schedule, whether or not the ones before were answered."""

    rate: float  # calls a second
    arrivals: Arrivals = Arrivals.CONSTANT

    def __str__(self) -> str:
        return f"{self.rate:g}/s"

    def share(self, index: int, of: int) -> Open:
        """All of it: each process takes its own calls from the whole schedule."""
        return self

    def to_json(self) -> dict[str, Any]:
        """As results name it."""
        return {"loop": "open", "rate": self.rate, "arrivals": str(self.arrivals)}


Load = Closed | Open


@dataclass(frozen=True)
class Search:
    """For the highest rate that keeps this."""

    p99_ms: float
    answered: float = 0.999  # share of the calls
    arrivals: Arrivals = Arrivals.CONSTANT

    def to_json(self) -> dict[str, Any]:
        """As results name it."""
        return {"p99_ms": self.p99_ms, "answered_share": self.answered}


@dataclass(frozen=True)
class BenchConfig:
    """How long each load lasts and who makes it; ConfigError tells every fault."""

    loads: tuple[Load, ...]  # known beforehand: none of a search's
    search: Search | None = None
    duration_s: float = 10.0  # that is measured, of each load
    warm_up_s: float = 2.0  # before it, not counted
    deadline_s: float = 30.0  # of each call
    rows_per_call: int = 1
    processes: int = 1  # that make the load
    seed: int = 0  # of texts, images and Poisson arrivals

    def __post_init__(self) -> None:
        faults = [
            f"{option} is {value}; it must be {expected}"
            for option, value, holds, expected in self._rules()
            if not holds
        ]
        faults += [fault for load in self.loads if (fault := self._fault(load))]
        if faults:
            raise ConfigError(faults)

    def _rules(self) -> Iterator[tuple[str, str, bool, str]]:
        """Options, what they are and are to be; none that is no number keeps to its rule."""
        duration_s, warm_up_s, deadline_s = self.duration_s, self.warm_up_s, self.deadline_s
        yield "--duration", f"{duration_s:g}", 0 < duration_s <= 86_400, "above 0, up to a day"
        yield "--warm-up", f"{warm_up_s:g}", 0 <= warm_up_s <= 3600, "0 to 3600 seconds"
        in_time = 0 < deadline_s <= LONGEST_S
        yield "--deadline-ms", f"{deadline_s * 1000:g}", in_time, "above 0, up to an hour"
        if self.search is not None:
            p99_ms = self.search.p99_ms
            in_time = 0 < p99_ms <= 1000 * LONGEST_S
            yield "--p99-ms", f"{p99_ms:g}", in_time, "above 0, up to an hour"
        for option, value, most in (
            ("--rows-per-call", self.rows_per_call, MAX_ROWS),
            ("--processes", self.processes, MAX_PROCESSES),
        ):
            yield option, _told(value), 1 <= value <= most, f"1 to {most}"

    def _fault(self, load: Load) -> str:
        if isinstance(load, Open):
            if not (math.isfinite(load.rate) and 0 < load.rate <= MAX_RATE):
                return f"--rate has {load.rate:g}; calls a second are above 0, up to {MAX_RATE:g}"
            return ""
        if not self.processes <= load.callers <= MAX_CALLERS:
            return (
                f"--concurrency has {_told(load.callers)}; with --processes {self.processes} it is "
                f"{self.processes} to {MAX_CALLERS}"
            )
        return ""


def _told(number: int) -> str:
    """Of a long one its beginning, as any can be typed."""
    digits = str(number)
    return digits if len(digits) <= _DIGITS else f"{digits[:_DIGITS]}..."
