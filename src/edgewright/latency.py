"""Fair timing of models against each other, at the mix of request shapes that is expected.

Two models timed one after the other differ by what else the machine did meanwhile. So every round
times all of them, forwards in one and backwards in the next (A B C, C B A), each is compared with
the baseline of its own round, and the median of these ratios is reported with an interval that
assumes nothing about how the times are distributed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewright.errors import ConfigError
from edgewright.preprocess import Preprocessor, Row

Arrays = Mapping[str, NDArray[Any]]
Clock = Callable[[], float]  # seconds, monotonic

_VARIETY: Final = 4  # different inputs by shape, taken in turn
_SETTLED: Final = 1.1  # warm when the slowest of the last three calls is within this of the fastest


@dataclass(frozen=True, order=True)
class Shape:
    """One call: ``rows`` texts padded to ``length`` tokens, or images as high; written "8x128"."""

    rows: int
    length: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.length}"


@dataclass(frozen=True)
class Workload:
    """Shapes of calls and how often each occurs, relative to the others.

    Written "1x32:0.5,8x128:0.5"; without weights all are equally frequent.
    """

    weights: tuple[tuple[Shape, float], ...]

    def __post_init__(self) -> None:
        shapes = [shape for shape, _ in self.weights]
        faults = [
            f"workload {shape}: rows and length must be 1 or more"
            for shape in shapes
            if shape.rows < 1 or shape.length < 1
        ]
        faults += [
            f"workload {shape}: its weight is {weight:g}; it must be above 0 and finite"
            for shape, weight in self.weights
            if not (weight > 0 and math.isfinite(weight))
        ]
        faults += [
            f"workload {shape} is there twice" for shape in set(shapes) if shapes.count(shape) > 1
        ]
        if not shapes:
            faults = ["the workload is empty; give shapes as 1x32:0.5,8x128:0.5"]
        if faults:
            raise ConfigError(sorted(faults))

    def __str__(self) -> str:
        return ",".join(f"{shape}:{weight!r}" for shape, weight in self.weights)

    @property
    def shares(self) -> dict[Shape, float]:
        """Share of calls by shape, summing to 1."""
        total = sum(weight for _, weight in self.weights)
        return {shape: weight / total for shape, weight in self.weights}

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Read "ROWSxLENGTH[:WEIGHT],..."; ``str`` is its inverse.

        Raises:
            ConfigError: names every part that cannot be read.
        """
        parts = [_parse_part(part.strip()) for part in text.split(",") if part.strip()]
        faults = [part for part in parts if isinstance(part, str)]
        if faults:
            raise ConfigError(faults)
        return cls(tuple(part for part in parts if not isinstance(part, str)))

    @classmethod
    def from_lengths(cls, lengths: Sequence[int]) -> Workload:
        """Half single texts of median length, half 8 texts padded to the 90th percentile.

        A lone request is as long as the typical text; a batch is as long as its longest.

        Args:
            lengths: tokens of each text, as the model sees them.

        Raises:
            ConfigError: there are none.
        """
        if not len(lengths):
            raise ConfigError("no texts to take a workload from; give one as 1x32:0.5,8x128:0.5")
        typical, long = np.quantile(np.asarray(lengths), [0.5, 0.9], method="inverted_cdf")
        return cls(((Shape(1, max(1, int(typical))), 0.5), (Shape(8, max(1, int(long))), 0.5)))


def _parse_part(part: str) -> tuple[Shape, float] | str:
    """A shape and its weight, or what is wrong with it."""
    shape, _, weight = part.partition(":")
    rows, _, length = shape.partition("x")
    try:
        return Shape(int(rows), int(length)), float(weight) if ":" in part else 1.0
    except ValueError:
        return f"workload {part!r}: expected ROWSxLENGTH or ROWSxLENGTH:WEIGHT, as 8x128:0.5"


@dataclass(frozen=True)
class Effort:
    """How long to measure; ConfigError tells every fault.

    ``budget_s`` is a target: ``min_rounds`` are measured even if they take longer.
    """

    budget_s: float = 30.0
    min_rounds: int = 9
    max_rounds: int = 101
    confidence: float = 0.95

    def __post_init__(self) -> None:
        faults = []
        if not self.budget_s > 0:
            faults.append(f"budget_s is {self.budget_s:g}; it must be above 0")
        if not 0 < self.confidence < 1:
            faults.append(f"confidence is {self.confidence:g}; it must be between 0 and 1")
        elif median_ranks(self.min_rounds, self.confidence) is None:
            faults.append(
                f"{self.min_rounds} rounds bound no median at confidence {self.confidence:g}"
            )
        if self.max_rounds < self.min_rounds:
            faults.append(f"max_rounds is {self.max_rounds}, below min_rounds {self.min_rounds}")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call of one shape: the median with its interval, and the tail."""

    p50_ms: float
    low_ms: float
    high_ms: float
    p90_ms: float | None  # None where the rounds are too few to say
    rounds: int


@dataclass(frozen=True)
class Timing:
    """One model at the workload; ``ratio`` is how many times faster than the baseline it is."""

    latencies: Mapping[str, Latency]  # by shape, as "1x32"
    workload_ms: float  # medians weighted by the workload's shares: what a call takes on average
    ratio: float  # median over rounds of the baseline's workload time over this model's
    ratio_low: float
    ratio_high: float

    @property
    def p50_ms(self) -> dict[str, float]:
        """Median milliseconds by shape."""
        return {shape: latency.p50_ms for shape, latency in self.latencies.items()}


class InputMaker(Protocol):
    """Inputs of one shape; another ``index`` gives other rows."""

    def __call__(self, shape: Shape, index: int) -> Arrays:
        """Arrays by input name, each of shape (rows, length)."""
        ...


def inputs_from_rows(preprocessor: Preprocessor, rows: Sequence[Row]) -> InputMaker:
    """Real rows, the longest first, cut and padded to the shape that is asked for."""
    by_length = sorted(rows, key=len, reverse=True)

    def make(shape: Shape, index: int) -> Arrays:
        start = index * shape.rows
        chosen = [by_length[(start + offset) % len(by_length)] for offset in range(shape.rows)]
        cut = [preprocessor.cut(row, shape.length) for row in chosen]
        return preprocessor.pad(cut, shape.length).arrays

    return make


def compare(
    runs: Mapping[str, Callable[[Arrays], object]],
    baseline: str,
    workload: Workload,
    make_inputs: InputMaker,
    *,
    row_by_row: Collection[str] = (),
    effort: Effort | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Time several models in turns.

    Args:
        runs: one forward pass of each model, by name; best no more than six at once.
        baseline: the name that the others are compared with; its own ratio is 1.
        workload: what to time.
        make_inputs: gives the inputs of a shape.
        row_by_row: names of models that are served one row at a time: a call of 8x128 is eight of
            1x128 for them.
        effort: how long to measure.
        clock: seconds; a parameter so that tests need not wait.

    Returns:
        By name, in the order of ``runs``.
    """
    effort = effort or Effort()
    calls = {
        (name, shape): _Call(run, _feeds(make_inputs, shape, one_row=name in row_by_row))
        for shape in workload.shares
        for name, run in runs.items()
    }
    warm_up_s = 0.2 * effort.budget_s / len(calls)
    round_s = sum(_warm_up(call, warm_up_s, clock) for call in calls.values())
    affordable = int(0.8 * effort.budget_s / round_s) if round_s > 0 else effort.max_rounds
    rounds = max(effort.min_rounds, min(effort.max_rounds, affordable))
    seconds = {key: np.empty(rounds) for key in calls}
    for index in range(rounds):
        for key in calls if index % 2 == 0 else reversed(calls):
            seconds[key][index] = calls[key].time(index, clock)
    return {name: _timing(name, baseline, workload, seconds, effort) for name in runs}


@dataclass(frozen=True)
class _Call:
    """One model at one shape, with a few different inputs; each is a list of passes."""

    run: Callable[[Arrays], object]
    feeds: Sequence[Sequence[Arrays]]

    def time(self, index: int, clock: Clock) -> float:
        passes = self.feeds[index % len(self.feeds)]
        start = clock()
        for arrays in passes:
            self.run(arrays)
        return clock() - start


def _feeds(make_inputs: InputMaker, shape: Shape, *, one_row: bool) -> list[list[Arrays]]:
    feeds: list[list[Arrays]] = []
    for index in range(_VARIETY):
        arrays = make_inputs(shape, index)
        rows = [slice(row, row + 1) for row in range(shape.rows)] if one_row else [slice(None)]
        feeds.append([{name: value[each] for name, value in arrays.items()} for each in rows])
    return feeds


def _warm_up(call: _Call, budget_s: float, clock: Clock) -> float:
    """Call until three in a row take about as long, or the time is up; seconds of the last ones."""
    seconds: list[float] = []
    while len(seconds) < 3 or max(seconds[-3:]) > _SETTLED * min(seconds[-3:]):
        seconds.append(call.time(len(seconds), clock))
        if len(seconds) >= 2 and sum(seconds) >= budget_s:
            break
    return float(np.median(seconds[1:][-3:]))  # the first is cold


def _timing(
    name: str,
    baseline: str,
    workload: Workload,
    seconds: Mapping[tuple[str, Shape], NDArray[np.float64]],
    effort: Effort,
) -> Timing:
    shares = workload.shares
    latencies = {shape: _latency(seconds[name, shape] * 1e3, effort.confidence) for shape in shares}
    mine = sum(share * seconds[name, shape] for shape, share in shares.items())
    theirs = sum(share * seconds[baseline, shape] for shape, share in shares.items())
    ratio, low, high = median_interval(np.asarray(theirs) / np.asarray(mine), effort.confidence)
    return Timing(
        latencies={str(shape): latency for shape, latency in latencies.items()},
        workload_ms=sum(share * latencies[shape].p50_ms for shape, share in shares.items()),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
    )


def _latency(milliseconds: NDArray[np.float64], confidence: float) -> Latency:
    median, low, high = median_interval(milliseconds, confidence)
    rounds = len(milliseconds)
    # With fewer, the chance that none of them lies above the percentile exceeds 1 - confidence.
    enough = 0.9**rounds <= 1 - confidence
    tail = float(np.quantile(milliseconds, 0.9, method="inverted_cdf")) if enough else None
    return Latency(median, low, high, tail, rounds)


def median_interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    """Median and its distribution-free interval, of at least ``confidence``.

    Raises:
        ConfigError: too few values to bound a median.
    """
    ranks = median_ranks(len(values), confidence)
    if ranks is None:
        raise ConfigError(f"{len(values)} values bound no median at confidence {confidence:g}")
    ordered = np.sort(values)
    return float(np.median(ordered)), float(ordered[ranks[0]]), float(ordered[ranks[1]])


def median_ranks(n: int, confidence: float) -> tuple[int, int] | None:
    """Indices of the order statistics that enclose the median of n independent values.

    The number of values below the median is Binomial(n, 1/2), whatever their distribution; the
    interval from the k-th smallest to the k-th largest misses it with probability
    2 P(Binomial(n, 1/2) < k) (David and Nagaraja, Order Statistics, section 7.1). Gives the largest
    k that keeps this within 1 - confidence; None where not even k = 1 does.
    """
    below, found = 0.0, None
    for k in range(1, n // 2 + 1):
        below += math.comb(n, k - 1) / 2**n
        if 2 * below > 1 - confidence:
            break
        found = (k - 1, n - k)
    return found
