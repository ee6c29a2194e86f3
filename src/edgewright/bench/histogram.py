"""A histogram of durations in bounded memory: log-linear buckets, as HdrHistogram has them.

Each doubling of the value is cut into 128 buckets of equal width, so that a bucket is at most 1/128
of its values wide, and what is told for a value, the middle, is off by less than half a percent.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

_BITS: Final = 7  # 2**7 buckets a doubling
# 2**43 ns are 2.4 hours: longer than any deadline that is taken.
_MOST_NS: Final = 2**43 - 1
_BUCKETS: Final = ((43 - _BITS - 1) << _BITS) + (2 << _BITS)


class Histogram:
    """Counts of durations in whole nanoseconds, from 0 to 2.4 hours; what is longer counts as that.

    Least, most and sum are exact.
    """

    def __init__(self) -> None:
        self.count = 0
        self.least_ns = 0
        self.most_ns = 0
        self._sum_ns = 0
        self._buckets = array("Q", bytes(8 * _BUCKETS))

    def record(self, seconds: float) -> None:
        """Count one duration; a negative one, of a clock's rounding, is 0."""
        value = min(max(round(seconds * 1e9), 0), _MOST_NS)
        shift = max(value.bit_length() - _BITS - 1, 0)
        self._buckets[(shift << _BITS) + (value >> shift)] += 1
        self.least_ns = min(self.least_ns, value) if self.count else value
        self.most_ns = max(self.most_ns, value)
        self._sum_ns += value
        self.count += 1

    def add(self, other: Histogram) -> None:
        """Count all that ``other`` has counted."""
        if not other.count:
            return
        self.least_ns = min(self.least_ns, other.least_ns) if self.count else other.least_ns
        self.most_ns = max(self.most_ns, other.most_ns)
        self._sum_ns += other._sum_ns
        self.count += other.count
        for index, count in enumerate(other._buckets):
            if count:
                self._buckets[index] += count

    def mean_s(self) -> float:
        """Seconds; 0 where nothing was counted."""
        return self._sum_ns / self.count / 1e9 if self.count else 0.0

    def quantile_s(self, share: float) -> float:
        """The shortest duration that at least ``share`` of all do not exceed; seconds.

        numpy's ``inverted_cdf``, off by less than half a percent; 0 where nothing was counted.
        """
        # As a fraction: 0.99 of 100 is the 99th, and 0.99 * 100 in floats is a little more.
        exact = Fraction(str(share)) * self.count
        rank = max(-(-exact.numerator // exact.denominator), 1)
        below = 0
        for low_ns, high_ns, count in self.buckets():
            below += count
            if below >= rank:
                middle = (low_ns + high_ns) // 2
                return min(max(middle, self.least_ns), self.most_ns) / 1e9
        return 0.0

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """(least, most, count) of each bucket that counted something, shortest first; ns."""
        for index, count in enumerate(self._buckets):
            if count:
                low, width = _bounds(index)
                yield low, low + width - 1, count


def _bounds(index: int) -> tuple[int, int]:
    """Least value and width of a bucket, in ns."""
    shift = max((index >> _BITS) - 1, 0)
    return (index - (shift << _BITS)) << shift, 1 << shift
