"""The ranking: its divergence, its streaming and its caps, with answers that are given."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.model_file import LOGITS
from edgewright.optimize.sensitivity import Ranking, divergence, rank_groups
from edgewright.optimize.switch_graph import SWITCHES


class Answers:
    """A session whose logits move by a shift of each group that is int8; a run takes a second."""

    inputs = outputs = ()

    def __init__(self, *shifts: float) -> None:
        self.shifts, self.now = np.array(shifts), 0.0

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.now += 1
        switches = arrays[SWITCHES]
        moved = self.shifts[switches].sum()
        rows = len(arrays["x"])
        return {LOGITS: np.stack([np.full(rows, moved), np.zeros(rows)], axis=1)}

    def rank(self, batches: Iterator[Any], seconds: float = math.inf) -> Ranking:
        names = [f"g{place}" for place in range(len(self.shifts))]
        return rank_groups(self, names, batches, seconds=seconds, clock=lambda: self.now)


def batches(count: int, rows: int = 2) -> Iterator[dict[str, NDArray[Any]]]:
    return ({"x": np.zeros((rows, 1))} for _ in range(count))


def test_the_divergence_is_kullback_and_leiblers() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 4))
    p, q = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in (first, second))
    expected = (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(divergence(first, second), expected)
    np.testing.assert_allclose(divergence(first, second + 7.0), expected)
    assert (divergence(first, first) == 0).all()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_answers_that_are_no_numbers_are_infinitely_far(broken: float) -> None:
    found = divergence(np.zeros((2, 2)), np.array([[broken, 0.0], [1.0, 0.0]]))
    assert found[0] == math.inf
    assert 0 < found[1] < math.inf


def test_the_one_that_moves_the_answers_most_comes_first() -> None:
    ranking = Answers(0.1, -3.0, 0.0, 1.0).rank(batches(3))
    assert [each.group for each in ranking.groups] == ["g1", "g3", "g0", "g2"]
    assert ranking.rows == 6
    assert ranking.groups[-1].divergence == 0


def test_equal_ones_keep_the_order_of_the_graph() -> None:
    ranking = Answers(1.0, 2.0, 1.0, 2.0).rank(batches(1))
    assert [each.group for each in ranking.groups] == ["g1", "g3", "g0", "g2"]


def test_one_batch_is_held_at_a_time() -> None:
    alive: list[weakref.ref[Any]] = []

    def made() -> Iterator[dict[str, NDArray[Any]]]:
        for _ in range(5):
            array = np.zeros((2, 1))
            alive.append(weakref.ref(array))
            yield {"x": array}
            del array
            assert sum(each() is not None for each in alive) <= 1

    assert Answers(1.0, 2.0).rank(made()).rows == 10


def test_a_batch_that_time_cut_short_does_not_count() -> None:
    """Three runs a batch: the float model and two groups."""
    assert Answers(1.0, 2.0).rank(batches(9), seconds=7).rows == 4
    assert Answers(1.0, 2.0).rank(batches(9), seconds=6).rows == 4
    assert Answers(1.0, 2.0).rank(batches(9), seconds=2) == Ranking((), 0)
