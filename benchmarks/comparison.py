"""Runs side by side: how many times faster, and whether as accurate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.job import Outcome
from edgewright.latency import median_interval, median_ranks
from edgewright.metrics import accuracy_interval

_CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Run:
    """What one contender did with one seed; ``right`` (rows,) tells the held-out rows it knows."""

    contender: str
    seed: int
    outcome: Outcome
    right: NDArray[np.bool_]
    load_average: float  # of the minute before it started

    def to_json(self) -> dict[str, Any]:
        """A JSON object; the held-out rows as counts."""
        correct, n = int(self.right.sum()), len(self.right)
        return {
            "contender": self.contender,
            "seed": self.seed,
            "train_s": round(self.outcome.train_s, 3),
            "command_s": round(self.outcome.command_s, 3),
            "phases": dict(self.outcome.phases),
            "correct": correct,
            "accuracy": correct / n,
            "accuracy_interval": list(accuracy_interval(correct, n)),
            "load_average": self.load_average,
            "notes": dict(self.outcome.notes),
        }


@dataclass(frozen=True)
class Ratio:
    """Seconds of a peer over ours, seed by seed: the median, and how far the seeds spread.

    ``interval`` bounds the median at 95% confidence whatever the distribution; None below six
    seeds, of which none can.
    """

    median: float
    least: float
    most: float
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        """Of at least one."""
        values = np.asarray(ratios, np.float64)
        interval = None
        if median_ranks(len(values), _CONFIDENCE) is not None:
            _, low, high = median_interval(values, _CONFIDENCE)
            interval = (low, high)
        return cls(float(np.median(values)), float(values.min()), float(values.max()), interval)


@dataclass(frozen=True)
class Accuracy:
    """Mean accuracy over seeds on the held-out rows.

    ``interval`` is Clopper-Pearson's for that share of as many rows as there are: the seeds are
    scored on the same ones, and count as no further rows.
    """

    mean: float
    interval: tuple[float, float]
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """Our accuracy minus a peer's on the same rows.

    ``standard_error`` is that of the mean over rows of a row's difference, itself the mean over
    seeds: seeds share their rows, which are what is drawn. ``as_good`` says whether ours is within
    one standard error, or better.
    """

    mean: float
    standard_error: float
    as_good: bool


@dataclass(frozen=True)
class Comparison:
    """Every run, and what they come to beside ``ours``."""

    ours: str
    runs: Sequence[Run]

    @property
    def names(self) -> list[str]:
        """Contenders with runs, in the order in which they first ran."""
        return list(dict.fromkeys(run.contender for run in self.runs))

    def seconds(self, name: str, what: Callable[[Outcome], float]) -> float:
        """Median over seeds."""
        return float(np.median([what(run.outcome) for run in self._of(name).values()]))

    def ratio(self, peer: str, what: Callable[[Outcome], float]) -> Ratio:
        """How many times as long the peer takes, over the seeds that both have run."""
        mine, theirs = self._of(self.ours), self._of(peer)
        both = [seed for seed in mine if seed in theirs]
        return Ratio.of([what(theirs[seed].outcome) / what(mine[seed].outcome) for seed in both])

    def accuracy(self, name: str) -> Accuracy:
        """On the held-out rows."""
        by_seed = [float(run.right.mean()) for run in self._of(name).values()]
        rows, mean = len(self.runs[0].right), float(np.mean(by_seed))
        return Accuracy(mean, accuracy_interval(round(mean * rows), rows), tuple(by_seed))

    def difference(self, peer: str) -> Difference:
        """Ours minus the peer's, paired by seed and row."""
        mine, theirs = self._of(self.ours), self._of(peer)
        both = [seed for seed in mine if seed in theirs]
        pairs = [mine[seed].right.astype(float) - theirs[seed].right for seed in both]
        rows = np.mean(pairs, axis=0)
        mean = float(rows.mean())
        error = float(rows.std(ddof=1) / np.sqrt(len(rows))) if len(rows) > 1 else float("inf")
        return Difference(mean, error, mean >= -error)

    def to_json(self) -> dict[str, Any]:
        """Ratios, accuracies and every run."""
        peers = [name for name in self.names if name != self.ours]
        return {
            "ours": self.ours,
            "seconds": {
                name: {key: self.seconds(name, what) for key, what in MEASURED.items()}
                for name in self.names
            },
            "ratios": {
                peer: {key: asdict(self.ratio(peer, what)) for key, what in MEASURED.items()}
                for peer in peers
            },
            "accuracy": {name: asdict(self.accuracy(name)) for name in self.names},
            "differences": {peer: asdict(self.difference(peer)) for peer in peers},
            "runs": [run.to_json() for run in self.runs],
        }

    def _of(self, name: str) -> dict[int, Run]:
        return {run.seed: run for run in self.runs if run.contender == name}


MEASURED: Final[Mapping[str, Callable[[Outcome], float]]] = {
    "train": lambda outcome: outcome.train_s,
    "command": lambda outcome: outcome.command_s,
}
