"""When the calls of an open loop are due, fixed before the first is sent."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from enum import StrEnum


class Arrivals(StrEnum):
    """How calls are spaced."""

    CONSTANT = "constant"
    POISSON = "poisson"  # as independent callers come: exponential gaps


def arrivals(kind: Arrivals, rate: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which calls are due, without end; ``rate`` a second on average."""
    if kind is Arrivals.CONSTANT:
        return (number / rate for number in itertools.count())
    rng = random.Random(seed)
    return itertools.accumulate(iter(lambda: rng.expovariate(rate), None), initial=0.0)


def share(due: Iterator[float], index: int, of: int) -> Iterator[float]:
    """Every ``of``-th call, the first of them number ``index``: one process's part."""
    return itertools.islice(due, index, None, of)
