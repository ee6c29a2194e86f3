from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright.serve.runs import MOST_PADDING, runs_of_similar_length


@settings(deadline=None)
@given(st.lists(st.integers(1, 512), max_size=64), st.integers(1, 8192))
def test_runs_hold_every_row_once_and_no_row_pads_a_run_by_more_than_it_may(
    lengths: list[int], max_tokens: int
) -> None:
    runs = runs_of_similar_length(lengths, False, max_tokens)
    assert sorted(chain(*runs)) == list(range(len(lengths)))
    for run in runs:
        ordered = [lengths[index] for index in run]
        assert ordered == sorted(ordered)
        assert len(run) == 1 or len(run) * ordered[-1] <= max_tokens
        for place in range(1, len(run)):
            assert place * (ordered[place] - ordered[place - 1]) <= MOST_PADDING


def least_cost(lengths: Sequence[int], run_cost: int) -> int:
    """In tokens, of the best split of rows in order of length."""
    least = [0]
    for end in range(1, len(lengths) + 1):
        longest = lengths[end - 1]
        least.append(min(least[first] + run_cost + (end - first) * longest for first in range(end)))
    return least[-1]


@pytest.mark.parametrize("rows", [4, 8, 16, 32])
@pytest.mark.parametrize("run_cost", [8, 10, 14])
def test_the_split_costs_little_more_than_the_best(rows: int, run_cost: int) -> None:
    draw = random.Random(0)
    found = best = 0
    for _ in range(100):
        lengths = sorted(14 + int(draw.expovariate(1 / 3)) for _ in range(rows))
        runs = runs_of_similar_length(lengths, False, 1024)
        found += sum(run_cost + len(run) * lengths[run[-1]] for run in runs)
        best += least_cost(lengths, run_cost)
    assert found <= 1.015 * best


def test_a_short_row_is_not_padded_to_a_long_one() -> None:
    assert runs_of_similar_length([8, 128, 9, 127], False, 4096) == [[0, 2], [3, 1]]


def test_row_by_row_every_row_runs_alone() -> None:
    assert runs_of_similar_length([5, 5, 5], True, 4096) == [[0], [1], [2]]
