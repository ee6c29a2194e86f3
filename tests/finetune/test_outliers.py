"""Rows that lie far from all others."""

import numpy as np
from sklearn.datasets import load_digits

from edgewright.finetune import outliers
from edgewright.finetune.outliers import find_outliers


def digits_with_noise(count):
    features = load_digits().data.astype(np.float32)
    noise = np.random.default_rng(0).uniform(0, 16, size=(count, 64)).astype(np.float32)
    return np.concatenate([features, noise]), set(range(len(features), len(features) + count))


def test_noise_among_digits_is_found_the_farthest_first():
    features, noise = digits_with_noise(5)
    found = find_outliers(features)
    assert noise <= set(found.rows[:8])
    assert len(found.rows) < 0.01 * len(features)
    assert list(found.distances) == sorted(found.distances, reverse=True)
    assert found.distances[-1] > found.limit


def test_the_slices_it_works_in_change_nothing(monkeypatch):
    features, _ = digits_with_noise(3)
    whole = find_outliers(features)
    monkeypatch.setattr(outliers, "_CHUNK_ROWS", 100)
    assert find_outliers(features).rows == whole.rows


def test_too_few_rows_tell_nothing_and_equal_rows_no_outlier():
    assert find_outliers(np.ones((10, 4), np.float32)).limit is None
    assert find_outliers(np.ones((60, 4), np.float32)).rows == ()
