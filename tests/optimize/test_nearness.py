from __future__ import annotations

import numpy as np

from edgewright.optimize.nearness import Nearness


def test_it_is_the_cosine_by_row() -> None:
    model = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    found = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    near = Nearness.of(model, found)
    assert (near.rows, near.cosine_median) == (3, 1.0)
    np.testing.assert_allclose(near.cosine_worst, np.sqrt(0.5))


def test_zeros_are_near_to_zeros_alone() -> None:
    zeros, ones = np.zeros((1, 2)), np.ones((1, 2))
    assert Nearness.of(zeros, zeros).cosine_worst == 1.0
    assert Nearness.of(zeros, ones).cosine_worst == 0.0
