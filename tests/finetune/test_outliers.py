"""Rows that lie far from all others."""

import numpy as np
from sklearn.datasets import load_digits

from edgewright.finetune import outliers
from edgewright.finetune.outliers import find_outliers


def digits_with_negatives(count):
    """All digits, and the negatives of a few: the rows of those."""
    features = load_digits().data.astype(np.float32)
    negatives = 16 - features[:: len(features) // count][:count]
    return np.concatenate([features, negatives]), set(range(len(features), len(features) + count))


def test_negatives_among_digits_are_found_the_farthest_first():
    features, negatives = digits_with_negatives(5)
    found = find_outliers(features)
    assert negatives == set(found.rows[:5])
    assert 5 <= found.beyond < 0.02 * len(features)
    assert list(found.distances) == sorted(found.distances, reverse=True)
    assert found.distances[4] > found.limit


def test_the_slices_it_works_in_change_nothing(monkeypatch):
    features, _ = digits_with_negatives(3)
    whole = find_outliers(features)
    monkeypatch.setattr(outliers, "_CHUNK_ROWS", 100)
    assert find_outliers(features).rows == whole.rows


def test_too_few_rows_tell_nothing_and_equal_rows_no_outlier():
    assert find_outliers(np.ones((10, 4), np.float32)).limit is None
    assert find_outliers(np.ones((60, 4), np.float32)).beyond == 0
