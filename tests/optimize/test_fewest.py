"""The search for the fewest: against brute force, under its caps, and taken up again."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.optimize.fewest import Ending, Fewest, fewest, most_evaluations

SIZES = st.integers(1, 200)


class Outcomes:
    """Outcomes by k, each of which may be asked for once; every one takes a second."""

    def __init__(self, passing: set[int]) -> None:
        self.passing, self.asked, self.now = passing, list[int](), 0.0

    def __call__(self, k: int) -> bool:
        assert k not in self.asked
        self.asked.append(k)
        self.now += 1
        return k in self.passing

    def search(self, n: int, seconds: float = math.inf, **options) -> Fewest:
        return fewest(n, self, seconds=seconds, clock=lambda: self.now, **options)


@given(SIZES, st.data())
def test_where_more_is_never_worse_it_is_the_smallest(n: int, data) -> None:
    smallest = data.draw(st.integers(1, n + 1))
    outcomes = Outcomes(set(range(smallest, n + 1)))
    found = outcomes.search(n)
    assert found.k == (smallest if smallest <= n else None)
    assert found.ending is (Ending.FOUND if smallest <= n else Ending.NONE_PASSES)
    assert found.is_monotone
    assert found.is_verified == (smallest <= n)
    assert len(outcomes.asked) <= 2 * math.log2(n) + 4


@given(SIZES, st.data())
def test_whatever_the_outcomes_it_passes_and_one_fewer_does_not(n: int, data) -> None:
    passing = data.draw(st.sets(st.integers(1, n)))
    outcomes = Outcomes(passing)
    found = outcomes.search(n)
    assert len(outcomes.asked) <= most_evaluations(n) <= 2 * math.log2(n) + 4
    if found.k is None:
        assert n not in passing
        return
    assert found.is_verified
    assert found.k in passing
    assert found.k - 1 not in passing
    if found.k < n:
        assert found.outcomes[found.k + 1] == (found.k + 1 in passing)
        assert found.is_monotone == (found.k + 1 in passing)


@given(SIZES, st.data())
def test_a_search_that_was_killed_goes_on_without_repeating(n: int, data) -> None:
    passing = data.draw(st.sets(st.integers(1, n)))
    whole = Outcomes(passing)
    expected = whole.search(n)
    done = data.draw(st.integers(0, len(whole.asked)))
    rest = Outcomes(passing)
    again = rest.search(n, known={k: k in passing for k in whole.asked[:done]})
    assert rest.asked == whole.asked[done:]
    assert again == expected


@given(SIZES, st.integers(0, 20), st.data())
def test_no_evaluation_begins_after_a_cap(n: int, cap: int, data) -> None:
    passing = data.draw(st.sets(st.integers(1, n)))
    whole = Outcomes(passing).search(n)
    for options, ending in (
        ({"seconds": cap}, Ending.OUT_OF_TIME),
        ({"evaluations": cap}, Ending.OUT_OF_EVALUATIONS),
    ):
        outcomes = Outcomes(passing)
        found = outcomes.search(n, **options)
        assert len(outcomes.asked) <= cap
        if found.ending is ending:
            known = [k for k in outcomes.asked if k in passing]
            assert found.k == min(known, default=None)
        else:
            assert (found.k, found.ending) == (whole.k, whole.ending)


def test_what_is_known_counts_against_the_cap() -> None:
    outcomes = Outcomes({7, 8})
    found = outcomes.search(8, evaluations=3, known={1: False, 2: False})
    assert outcomes.asked == [4]
    assert found.ending is Ending.OUT_OF_EVALUATIONS


def test_a_number_that_fails_above_the_answer_is_told() -> None:
    found = Outcomes({1, 3}).search(3)
    assert (found.k, found.is_verified, found.is_monotone) == (1, True, False)


def test_a_ranking_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="one place or more"):
        Outcomes(set()).search(0)
