"""Metrics against scikit-learn, scipy and hand counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from edgewright.metrics import (
    accuracy,
    accuracy_interval,
    confusion_matrix,
    expected_calibration_error,
    f1_by_class,
    macro_f1,
    macro_f1_loss_interval,
)

CLASSES = 4
Pairs = list[tuple[int, int]]
pairs = st.lists(st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1)
NOTHING = np.array([], dtype=np.int64)


def columns(rows: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    labels, predicted = np.array(rows, dtype=np.int64).T
    return labels, predicted


@settings(deadline=None)  # a busy machine is no failure
@given(pairs)
def test_accuracy_f1_and_confusion_are_scikit_learns(rows: Pairs) -> None:
    labels, predicted = columns(rows)
    assert accuracy(labels, predicted) == sklearn.metrics.accuracy_score(labels, predicted)
    confusion = confusion_matrix(labels, predicted, CLASSES)
    expected = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(CLASSES))
    np.testing.assert_array_equal(confusion, expected)
    # scikit-learn too averages over the classes that occur when it is not told which there are
    f1 = sklearn.metrics.f1_score(labels, predicted, average="macro")
    assert macro_f1(labels, predicted, CLASSES) == pytest.approx(f1)


def test_a_class_that_never_occurs_has_no_f1_and_one_that_is_always_missed_has_zero() -> None:
    labels, predicted = columns([(0, 0), (0, 1), (2, 0)])
    scores = f1_by_class(confusion_matrix(labels, predicted, CLASSES))
    np.testing.assert_array_equal(scores, [0.5, 0.0, 0.0, np.nan])
    assert macro_f1(labels, predicted, CLASSES) == pytest.approx(0.5 / 3)


def test_without_rows_nothing_is_claimed() -> None:
    assert math.isnan(accuracy(NOTHING, NOTHING))
    assert math.isnan(macro_f1(NOTHING, NOTHING, CLASSES))
    assert accuracy_interval(0, 0) == (0.0, 1.0)
    assert confusion_matrix(NOTHING, NOTHING, 2).tolist() == [[0, 0], [0, 0]]
    assert expected_calibration_error(NOTHING, np.empty((0, 2))) == 0.0


@settings(deadline=None)  # a busy machine is no failure
@given(st.data(), st.integers(1, 2000), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_interval_of_a_share_is_scipys_exact_one(
    data: st.DataObject, n: int, confidence: float
) -> None:
    correct = data.draw(st.integers(0, n))
    exact = binomtest(correct, n).proportion_ci(confidence, method="exact")
    low, high = accuracy_interval(correct, n, confidence)
    assert (low, high) == pytest.approx((exact.low, exact.high), rel=1e-8)
    assert 0 <= low <= correct / n <= high <= 1


def calibration_error_by_hand(
    labels: NDArray[np.int64], scores: NDArray[np.float64], bins: int
) -> float:
    """Naeini et al. 2015, equation 3, bin by bin."""
    total = 0.0
    tops = scores.max(axis=1)
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = (tops >= low) & ((tops < high) | (number == bins - 1))
        if inside.any():
            right = (scores.argmax(axis=1) == labels)[inside]
            total += inside.mean() * abs(right.mean() - tops[inside].mean())
    return float(total)


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 5), st.sampled_from([1, 4, 8]))
def test_the_calibration_error_is_the_formulas(seed: int, n: int, classes: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.ones(classes), n)
    labels = rng.integers(0, classes, n)
    expected = calibration_error_by_hand(labels, scores, bins)
    assert expected_calibration_error(labels, scores, bins) == pytest.approx(expected, abs=1e-12)


def test_calibration_knows_the_sure_and_the_sure_but_wrong() -> None:
    scores = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert expected_calibration_error(np.array([0, 0]), scores) == 0.0
    assert expected_calibration_error(np.array([1, 1]), scores) == 1.0
    assert expected_calibration_error(np.array([0, 1]), scores) == 0.5
    scores = np.array([[1.0, 0.0], [0.96, 0.04]])  # certainty shares the last of 15 bins
    assert expected_calibration_error(np.array([1, 0]), scores) == pytest.approx(0.48)


def test_a_variant_that_agrees_loses_nothing() -> None:
    labels, predicted = columns([(0, 0), (1, 1), (1, 0), (2, 2)] * 10)
    assert macro_f1_loss_interval(labels, predicted, predicted, 3, seed=0, draws=50) == (0.0, 0.0)


def test_the_macro_f1_interval_holds_the_loss_and_is_the_seeds_alone() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    reference = labels.copy()
    variant = np.where(rng.random(400) < 0.1, (labels + 1) % 3, labels)
    interval = macro_f1_loss_interval(labels, reference, variant, 3, seed=1, draws=300)
    loss = macro_f1(labels, reference, 3) - macro_f1(labels, variant, 3)
    assert 0 < interval[0] < loss < interval[1] < 0.2
    again = macro_f1_loss_interval(labels, reference, variant, 3, seed=1, draws=300)
    other = macro_f1_loss_interval(labels, reference, variant, 3, seed=2, draws=300)
    assert interval == again != other


def test_rows_are_drawn_in_pairs() -> None:
    """Unpaired draws would make the interval of two equally good models wide, not narrow."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    reference = np.where(rng.random(200) < 0.3, 1 - labels, labels)
    variant = reference.copy()
    variant[0] = 1 - variant[0]
    low, high = macro_f1_loss_interval(labels, reference, variant, 2, seed=0, draws=300)
    assert high - low < 0.03
