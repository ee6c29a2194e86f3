from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.bench.arrivals import Arrivals, arrivals, share


def first(count: int, kind: Arrivals, rate: float = 50.0, seed: int = 0) -> list[float]:
    return list(itertools.islice(arrivals(kind, rate, seed), count))


def test_constant_arrivals_do_not_drift() -> None:
    due = first(100_001, Arrivals.CONSTANT, rate=300.0)
    assert due[0] == 0.0
    assert due[100_000] == 100_000 / 300.0


def test_poisson_arrivals_have_the_rate_and_exponential_gaps() -> None:
    due = first(20_001, Arrivals.POISSON, rate=50.0)
    gaps = [late - early for early, late in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 50, rel=0.03)
    # Of an exponential distribution 1/e is longer than the mean; of a constant one nothing is.
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


def test_a_schedule_is_its_seeds() -> None:
    assert first(100, Arrivals.POISSON, seed=1) == first(100, Arrivals.POISSON, seed=1)
    assert first(100, Arrivals.POISSON, seed=1) != first(100, Arrivals.POISSON, seed=2)


@given(st.sampled_from(Arrivals), st.integers(1, 7))
def test_the_shares_of_several_processes_are_the_whole_schedule(kind: Arrivals, of: int) -> None:
    shares = [
        list(itertools.islice(share(arrivals(kind, 50.0, 3), index, of), 20)) for index in range(of)
    ]
    together = sorted(itertools.chain.from_iterable(shares))
    assert together == first(20 * of, kind, seed=3)
