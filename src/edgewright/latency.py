"""Fair timing of models against each other, at the mix of request shapes that is expected.

What is expected (Workload), how long to look (Effort), and what the samples say (Timing).
``latency_rounds`` times models in turns within one process; ``latency_process`` starts several
such processes, a few models in each, for what one process shows another may not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewright.errors import ConfigError
from edgewright.kinds import IMAGE
from edgewright.preprocess import Preprocessor, Row, TextPreprocessor

Arrays = Mapping[str, NDArray[Any]]

LEAST_RESTARTS: Final = 3


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


def refuse_other_shapes(workload: Workload, preprocessor: Preprocessor) -> None:
    """ConfigError where a call of the workload is none that this model takes."""
    lengths = {shape.length for shape in workload.shares}
    height = preprocessor.input_shape[-2]
    if preprocessor.kind is IMAGE and lengths != {height}:
        raise ConfigError(
            f"the workload is {workload}; this model takes images of {height} pixels in height, "
            f"so give shapes such as 1x{height},8x{height}"
        )
    if isinstance(preprocessor, TextPreprocessor) and max(lengths) > preprocessor.max_length:
        raise ConfigError(
            f"the workload is {workload}; this model reads at most {preprocessor.max_length} "
            f"tokens, so give shapes such as 1x{preprocessor.max_length}"
        )


@dataclass(frozen=True)
class Effort:
    """How long to measure; ConfigError tells every fault.

    ``budget_s`` is a target for all processes together, loading not counted: ``min_rounds`` are
    measured in each even if they take longer.
    """

    budget_s: float = 36.0
    restarts: int = 3  # fresh processes; the same models differ between them by up to 7%
    min_rounds: int = 3
    max_rounds: int = 101
    confidence: float = 0.95

    def __post_init__(self) -> None:
        faults = []
        if not self.budget_s > 0:
            faults.append(f"budget_s is {self.budget_s:g}; it must be above 0")
        if not 0 < self.confidence < 1:
            faults.append(f"confidence is {self.confidence:g}; it must be between 0 and 1")
        if self.restarts < LEAST_RESTARTS:
            faults.append(f"restarts is {self.restarts}; it must be {LEAST_RESTARTS} or more")
        if self.min_rounds < 1:
            faults.append(f"min_rounds is {self.min_rounds}; it must be 1 or more")
        if self.max_rounds < self.min_rounds:
            faults.append(f"max_rounds is {self.max_rounds}, below min_rounds {self.min_rounds}")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call of one shape; a percentile is None where the calls are too few."""

    p50_ms: float
    p95_ms: float | None
    p99_ms: float | None
    calls: int


@dataclass(frozen=True)
class Timing:
    """One model at the workload; ``ratio`` is how many times faster than the baseline it is."""

    latencies: Mapping[str, Latency]  # by shape, as "1x32"
    workload_ms: float  # medians weighted by the workload's shares: what a call takes on average
    ratio: float  # geometric mean of ``ratios``
    ratio_low: float
    ratio_high: float
    ratios: tuple[float, ...] = ()  # by restart: median over its rounds of baseline time over own

    @property
    def p50_ms(self) -> dict[str, float]:
        """Median milliseconds by shape."""
        return {shape: latency.p50_ms for shape, latency in self.latencies.items()}

    def to_json(self) -> dict[str, Any]:
        """A JSON object; latencies by percentile and then by shape."""
        shapes = self.latencies.items()
        return {
            "p50_ms": self.p50_ms,
            "p95_ms": {shape: latency.p95_ms for shape, latency in shapes},
            "p99_ms": {shape: latency.p99_ms for shape, latency in shapes},
            "calls": {shape: latency.calls for shape, latency in shapes},
            "workload_ms": self.workload_ms,
            "speedup": self.ratio,
            "speedup_interval": [self.ratio_low, self.ratio_high],
            "speedup_by_restart": list(self.ratios),
        }


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


# Seconds of calls in one process, by model and shape; round by round, so that arrays align.
Samples = Mapping[str, Mapping[Shape, NDArray[np.float64]]]


def summarise(
    restarts: Sequence[Samples], baseline: str, workload: Workload, confidence: float
) -> dict[str, Timing]:
    """What the samples of several processes, or of one, say of every model in them.

    Of several, the interval of a ratio is that of processes to come; of one alone it is that of
    this process, from its rounds.

    Args:
        restarts: one for each process; every one holds the baseline.
        baseline: the name that the others are compared with; its own ratio is 1.
        workload: what was timed.
        confidence: of the intervals of the ratios.
    """
    names = list(dict.fromkeys(name for samples in restarts for name in samples))
    return {
        name: _timing(
            [samples for samples in restarts if name in samples],
            name,
            baseline,
            workload,
            confidence,
        )
        for name in names
    }


def _timing(
    restarts: Sequence[Samples], name: str, baseline: str, workload: Workload, confidence: float
) -> Timing:
    shares = workload.shares
    pooled = {shape: np.concatenate([each[name][shape] for each in restarts]) for shape in shares}
    latencies = {shape: _latency(seconds * 1e3, confidence) for shape, seconds in pooled.items()}
    by_round = [_ratios(samples, name, baseline, shares) for samples in restarts]
    ratios = tuple(float(np.median(each)) for each in by_round)
    if len(restarts) > 1:
        ratio, low, high = mean_ratio_interval(ratios, confidence)
    else:
        ratio, low, high = median_interval(by_round[0], confidence)
    return Timing(
        latencies={str(shape): latency for shape, latency in latencies.items()},
        workload_ms=sum(share * latencies[shape].p50_ms for shape, share in shares.items()),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        ratios=ratios,
    )


def _ratios(
    samples: Samples, name: str, baseline: str, shares: Mapping[Shape, float]
) -> NDArray[np.float64]:
    """By round of one process: each is compared with its own baseline."""
    mine, theirs = (
        np.asarray(sum(share * samples[each][shape] for shape, share in shares.items()))
        for each in (name, baseline)
    )
    return np.asarray(theirs / mine)


def _latency(milliseconds: NDArray[np.float64], confidence: float) -> Latency:
    return Latency(
        p50_ms=float(np.median(milliseconds)),
        p95_ms=_percentile(milliseconds, 0.95, confidence),
        p99_ms=_percentile(milliseconds, 0.99, confidence),
        calls=len(milliseconds),
    )


def _percentile(values: NDArray[np.float64], share: float, confidence: float) -> float | None:
    # With fewer, the chance that none of them lies above the percentile exceeds 1 - confidence.
    if share ** len(values) > 1 - confidence:
        return None
    return float(np.quantile(values, share, method="inverted_cdf"))


def mean_ratio_interval(ratios: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Geometric mean of independent ratios, with Student's interval on their logarithms.

    A ratio of one process carries what that process drew (memory layout, cores, clocks), which no
    number of rounds in it averages out; so the processes are the sample, however many rounds each
    had.
    """
    logarithms = np.log(np.asarray(ratios))
    middle = float(logarithms.mean())
    spread = float(logarithms.std(ddof=1)) / math.sqrt(len(ratios))
    half = student_quantile(0.5 + confidence / 2, len(ratios) - 1) * spread
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t, for a probability of one half or more.

    Bisection on the finite series for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and
    26.7.4): scipy, which has it too, is not there where servers measure.
    """
    low, high = 0.0, math.pi / 2  # theta = atan(t / sqrt(degrees))
    for _ in range(100):
        theta = (low + high) / 2
        if 0.5 + _student_central(theta, degrees) / 2 < probability:
            low = theta
        else:
            high = theta
    return math.tan((low + high) / 2) * math.sqrt(degrees)


def _student_central(theta: float, degrees: int) -> float:
    """Probability that the absolute value of T is at most sqrt(degrees) tan(theta)."""
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= math.cos(theta) ** 2 * (power + 1) / (power + 2)
    central = math.sin(theta) * total
    return 2 / math.pi * (theta + central) if odd else central


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
