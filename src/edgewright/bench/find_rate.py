"""The highest rate at which a server still answers in time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from edgewright.bench.config import MAX_RATE, Search
from edgewright.bench.result import Result

CLOSE_ENOUGH: Final = 1.05  # the lowest rate that fails over the highest that holds
# How far below the first rate is looked: a server that is too slow at that is too slow.
_DEEPEST: Final = 64
_LOWEST: Final = 0.5  # calls a second
_TRIES: Final = 30


def holds(result: Result, search: Search) -> bool:
    """Whether a result keeps what is searched for; of too few calls for a p99, by the slowest."""
    p99_ms = result.response.percentile_ms("p99")
    if p99_ms is None:
        p99_ms = result.tally.response.most_ns / 1e6
    return result.answered_share >= search.answered and p99_ms <= search.p99_ms


def highest_rate(attempt: Callable[[float], bool | None], first: float) -> float | None:
    """The highest rate that was tried and holds, found by doubling, halving, and bisection.

    Args:
        attempt: whether a rate, in calls a second, holds; None ends the search.
        first: the rate to try first, best somewhat near the highest.

    Returns:
        A rate that holds, with one at most 5% above it that does not; None where none holds.
    """
    low, high = 0.0, math.inf
    rate = _plain(min(max(first, _LOWEST), MAX_RATE))
    lowest = _plain(max(rate / _DEEPEST, _LOWEST))
    for _ in range(_TRIES):
        held = attempt(rate)
        if held is None:
            break
        low, high = (rate, high) if held else (low, rate)
        if low >= MAX_RATE or high <= lowest or (low and high / low <= CLOSE_ENOUGH):
            break
        rate = _next(low, high, lowest)
    return low or None


def _next(low: float, high: float, lowest: float) -> float:
    if math.isinf(high):
        return _plain(min(low * 2, MAX_RATE))
    if not low:
        return _plain(max(high / 2, lowest))
    return _plain(math.sqrt(low * high))


def _plain(rate: float) -> float:
    """Three digits are more than enough for a rate that somebody reads."""
    return float(f"{rate:.3g}")
