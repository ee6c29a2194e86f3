from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgewright.bench.histogram import Histogram

SHARES = (0.01, 0.5, 0.9, 0.99, 0.999, 0.9999)
# From the shortest that is told apart to longer than any call may take.
DURATIONS = st.lists(
    st.one_of(st.floats(0, 1e-6), st.floats(1e-6, 1.0), st.floats(1.0, 8000.0)), min_size=1
)


def histogram_of(durations: list[float]) -> Histogram:
    histogram = Histogram()
    for each in durations:
        histogram.record(each)
    return histogram


@given(DURATIONS)
@example([0.0, 2.7145585563306954e-07])  # to the nanosecond, and then to the bucket's middle
def test_every_quantile_is_numpys_within_half_a_percent(durations: list[float]) -> None:
    histogram = histogram_of(durations)
    for share in SHARES:
        exact = float(np.quantile(durations, share, method="inverted_cdf"))
        counted = round(exact * 1e9) / 1e9  # the nearest nanosecond
        assert histogram.quantile_s(share) == pytest.approx(counted, rel=0.005)


@given(DURATIONS)
def test_least_most_count_and_mean_are_exact(durations: list[float]) -> None:
    histogram = histogram_of(durations)
    assert histogram.count == len(durations)
    assert histogram.least_ns == round(min(durations) * 1e9)
    assert histogram.most_ns == round(max(durations) * 1e9)
    assert histogram.mean_s() == pytest.approx(float(np.mean(durations)), rel=1e-9, abs=1e-9)


@given(DURATIONS, DURATIONS)
def test_two_added_are_one_of_both(first: list[float], second: list[float]) -> None:
    added = pickle.loads(pickle.dumps(histogram_of(first)))
    added.add(histogram_of(second))
    added.add(Histogram())
    assert vars(added) == vars(histogram_of(first + second))
    emptied = Histogram()
    emptied.add(added)
    assert vars(emptied) == vars(added)


@given(DURATIONS)
def test_buckets_are_in_order_apart_and_hold_every_value(durations: list[float]) -> None:
    buckets = list(histogram_of(durations).buckets())
    assert sum(count for _, _, count in buckets) == len(durations)
    for (_, high, _), (low, _, _) in itertools.pairwise(buckets):
        assert high < low
    for each in durations:
        assert any(low <= round(each * 1e9) <= high for low, high, _ in buckets)


def test_its_memory_does_not_grow_and_what_is_too_long_or_negative_is_counted() -> None:
    histogram = Histogram()
    before = len(pickle.dumps(histogram))
    for power in range(-9, 9):
        histogram.record(10.0**power)
    histogram.record(-1.0)
    assert histogram.count == 19
    assert histogram.least_ns == 0
    assert histogram.quantile_s(1.0) == pytest.approx(2**43 / 1e9, rel=0.005)
    assert len(pickle.dumps(histogram)) < before + 200


def test_the_99th_of_a_hundred_is_the_99th() -> None:
    histogram = histogram_of([float(number) for number in range(1, 101)])
    assert histogram.quantile_s(0.99) == pytest.approx(99, rel=0.005)
    assert Histogram().quantile_s(0.5) == 0.0
