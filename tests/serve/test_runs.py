from __future__ import annotations

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright.serve.runs import RUN_COST_TOKENS, runs_of_similar_length


@settings(deadline=None)
@given(st.lists(st.integers(1, 512), max_size=64), st.integers(1, 8192))
def test_runs_hold_every_row_once_and_pad_no_more_than_a_run_costs(
    lengths: list[int], max_tokens: int
) -> None:
    runs = runs_of_similar_length(lengths, False, max_tokens)
    assert sorted(chain(*runs)) == list(range(len(lengths)))
    for run in runs:
        ordered = [lengths[index] for index in run]
        assert ordered == sorted(ordered)
        assert len(run) == 1 or len(run) * ordered[-1] <= max_tokens
        for place in range(1, len(run)):
            assert place * (ordered[place] - ordered[place - 1]) <= RUN_COST_TOKENS


def test_a_short_row_is_not_padded_to_a_long_one() -> None:
    assert runs_of_similar_length([8, 128, 9, 127], False, 4096) == [[0, 2], [3, 1]]


def test_row_by_row_every_row_runs_alone() -> None:
    assert runs_of_similar_length([5, 5, 5], True, 4096) == [[0], [1], [2]]
