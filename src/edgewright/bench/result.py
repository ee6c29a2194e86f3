"""What a load came to: figures, how much they rest on, and what makes them doubtful."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from edgewright.bench.config import Load, Open
from edgewright.bench.histogram import Histogram
from edgewright.bench.processes import Measured
from edgewright.bench.tally import Effort, Tally

PERCENTILES: Final[Mapping[str, float]] = {
    "p50": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999, "p99_99": 0.9999,
}  # fmt: skip
# Calls that must be slower than a percentile for it to be told: with fewer, chance decides it.
BEYOND: Final = 10
# What makes a result doubtful. Of a core, or of the time:
_BUSY: Final = 0.9
_WAITED: Final = 0.1
# Sends later than this, and later than this share of the median response, were late.
_LAG_S: Final = 0.002
_LAG_SHARE: Final = 0.1
# Second half over first.
_DRIFT_THROUGHPUT: Final = 0.1
_DRIFT_LATENCY: Final = 0.25


@dataclass(frozen=True)
class Latency:
    """Durations of calls that were answered."""

    histogram: Histogram

    def percentile_ms(self, name: str) -> float | None:
        """One of ``PERCENTILES``; None where fewer than ``BEYOND`` calls are slower."""
        if self.beyond(name) < BEYOND:
            return None
        return self.histogram.quantile_s(PERCENTILES[name]) * 1e3

    def beyond(self, name: str) -> int:
        """Calls that are slower than a percentile: what it rests on."""
        return int(round(self.histogram.count * (1 - PERCENTILES[name]), 6))

    def to_json(self) -> dict[str, Any] | None:
        """None where no call was answered."""
        histogram = self.histogram
        if not histogram.count:
            return None
        return {
            "calls": histogram.count,
            "min": _ms(histogram.least_ns / 1e9),
            "mean": _ms(histogram.mean_s()),
            **{name: _rounded(self.percentile_ms(name)) for name in PERCENTILES},
            "max": _ms(histogram.most_ns / 1e9),
        }


@dataclass(frozen=True)
class Result:
    """A load, measured."""

    measured: Measured
    rows_per_call: int

    @property
    def load(self) -> Load:
        """What was asked of the server."""
        return self.measured.load

    @property
    def tally(self) -> Tally:
        """What was counted."""
        return self.measured.tally

    @property
    def seconds(self) -> float:
        """For which it was measured."""
        return max(self.measured.window.end - self.measured.window.measured_from, 0.0)

    @property
    def calls_per_s(self) -> float:
        """Calls answered within the time measured: goodput."""
        return self._per_s(sum(self.tally.answered_within))

    @property
    def rows_per_s(self) -> float:
        """Rows answered."""
        return self.calls_per_s * self.rows_per_call

    @property
    def ended_per_s(self) -> float:
        """Calls that ended in whatever way: throughput."""
        return self._per_s(sum(self.tally.answered_within) + self.tally.failed_within)

    @property
    def answered_share(self) -> float:
        """Of the calls that were due; 0 where none was."""
        return self.tally.answered / self.tally.due if self.tally.due else 0.0

    @property
    def response(self) -> Latency:
        """From when calls were due."""
        return Latency(self.tally.response)

    @property
    def service(self) -> Latency:
        """From when they were sent."""
        return Latency(self.tally.service)

    @property
    def effort(self) -> Effort:
        """Of the process that had the most to do."""
        efforts = self.tally.efforts
        return Effort(
            max((each.cpu for each in efforts), default=0.0),
            max((each.waited for each in efforts), default=0.0),
        )

    @cached_property
    def halves(self) -> tuple[tuple[float, float], tuple[float | None, float | None]]:
        """Calls answered a second, and the median response in ms, of each half of the time."""
        first, second = self.tally.answered_within
        medians = [Latency(each).percentile_ms("p50") for each in self.tally.halves]
        half_s = self.seconds / 2
        rates = (first / half_s, second / half_s) if half_s else (0.0, 0.0)
        return rates, (medians[0], medians[1])

    @property
    def steady(self) -> bool | None:
        """Whether both halves are alike; None where they are too short to tell."""
        (first, second), (early, late) = self.halves
        if self.measured.interrupted or early is None or late is None:
            return None
        moved = abs(second / first - 1) if first else 1.0
        return moved <= _DRIFT_THROUGHPUT and abs(late / early - 1) <= _DRIFT_LATENCY

    @property
    def kept_up(self) -> bool:
        """Whether it was the server that was measured, and not the generator."""
        return not any(self._doubts())

    def warnings(self) -> list[str]:
        """What a reader must know before believing the figures."""
        told = self._doubts()
        tally = self.tally
        lost = tally.due - tally.answered
        if lost and tally.due:
            told.append(
                f"{lost} of {tally.due} calls got no answer; latencies are of those that did"
            )
        if tally.unsent:
            told.append(
                f"{tally.unsent} calls were due and could not be sent in time: the latencies are "
                "too low"
            )
        if self.steady is False:
            (first, second), (early, late) = self.halves
            told.append(
                f"not steady: {first:.1f} calls/s and a median of {early:.2f} ms in the first "
                f"half, {second:.1f} and {late:.2f} in the second; try a longer --warm-up or "
                "--duration"
            )
        if self.measured.interrupted:
            told.append(f"broken off after {self.seconds:.1f} s")
        return told

    def to_json(self) -> dict[str, Any]:
        """The result as ``--json`` shows it; durations in ms."""
        tally, effort = self.tally, self.effort
        (first, second), (early, late) = self.halves
        is_open = isinstance(self.load, Open)
        return {
            "load": self.load.to_json(),
            "seconds": round(self.seconds, 3),
            "calls": {
                "due": tally.due,
                "answered": tally.answered,
                "refused": tally.refused,
                "failed": tally.failed,
                "unsent": tally.unsent,
                "unfinished": tally.unfinished,
                "held_back": tally.held_back,
            },
            "answered_share": round(self.answered_share, 6),
            "calls_per_s": round(self.calls_per_s, 3),
            "rows_per_s": round(self.rows_per_s, 3),
            "ended_per_s": round(self.ended_per_s, 3),
            "response_ms": self.response.to_json(),
            "service_ms": self.service.to_json(),
            "errors": _errors(tally),
            "histogram": {
                "at_most_ms": [_ms(high / 1e9) for _, high, _ in tally.response.buckets()],
                "calls": [count for _, _, count in tally.response.buckets()],
            },
            "halves": {
                "calls_per_s": [round(first, 3), round(second, 3)],
                "p50_ms": [_rounded(early), _rounded(late)],
            },
            "steady": self.steady,
            "generator": {
                "kept_up": self.kept_up,
                "cpu": round(effort.cpu, 3),
                "waited_for_cpu": round(effort.waited, 3),
                "lag_ms": Latency(tally.lag).to_json() if is_open else None,
            },
            "warnings": self.warnings(),
        }

    def _per_s(self, count: int) -> float:
        return count / self.seconds if self.seconds else 0.0

    def _doubts(self) -> list[str]:
        """Why it may be the generator that was measured."""
        effort = self.effort
        told = []
        if effort.cpu >= _BUSY:
            told.append(
                f"THE GENERATOR WAS THE LIMIT: a process of it used {effort.cpu:.0%} of a core; "
                "give --processes more, or another machine"
            )
        if effort.waited >= _WAITED:
            told.append(
                f"THE GENERATOR WAITED FOR A CORE {effort.waited:.0%} of the time, so latencies "
                "are too high; run it on a machine with cores to spare"
            )
        lag = Latency(self.tally.lag).percentile_ms("p99")
        median = self.response.percentile_ms("p50") or 0.0
        if lag is not None and lag > max(_LAG_S * 1e3, _LAG_SHARE * median):
            told.append(
                f"THE GENERATOR WAS LATE: one call in a hundred was sent {lag:.1f} ms or more "
                "after it was due; response times hold this, service times do not"
            )
        return told


def _errors(tally: Tally) -> list[dict[str, Any]]:
    return [
        {
            "code": code,
            "reason": reason or None,
            "calls": each.count,
            "first_s": round(each.first_s, 3),
            "last_s": round(each.last_s, 3),
            "message": each.message,
        }
        for (code, reason), each in sorted(tally.failures.items(), key=lambda item: -item[1].count)
    ]


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 4)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
