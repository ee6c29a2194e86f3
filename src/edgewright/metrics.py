"""Classification metrics, one definition each: what training, the gate and the reports quote."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]  # (rows,) class indices


def accuracy(labels: Labels, predicted: Labels) -> float:
    """Share of rows whose prediction is right; NaN without rows."""
    return float(np.mean(labels == predicted)) if len(labels) else float("nan")


def confusion_matrix(labels: Labels, predicted: Labels, classes: int) -> NDArray[np.int64]:
    """Counts of shape (classes, classes): row = label, column = prediction."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def f1_by_class(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 of each class, shape (classes,); NaN for a class neither labelled nor predicted."""
    hits = np.diag(confusion).astype(np.float64)
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    scores = np.full(len(hits), np.nan)
    np.divide(2 * hits, total, out=scores, where=total > 0)
    return scores


def macro_f1(labels: Labels, predicted: Labels, classes: int) -> float:
    """Mean F1 over the classes that occur among labels or predictions; NaN without rows."""
    scores = f1_by_class(confusion_matrix(labels, predicted, classes))
    return float(np.nanmean(scores)) if len(labels) else float("nan")


def accuracy_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Clopper-Pearson interval of a share (Clopper and Pearson 1934).

    Returns (0, 1) for n = 0: nothing is known.
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, correct, n - correct + 1)) if correct else 0.0
    high = float(beta.ppf(1 - tail, correct + 1, n - correct)) if correct < n else 1.0
    return low, high


def macro_f1_loss_interval(
    labels: Labels,
    reference: Labels,
    variant: Labels,
    classes: int,
    *,
    seed: int,
    draws: int = 2000,
) -> tuple[float, float]:
    """95% percentile interval of macro-F1(reference) - macro-F1(variant), rows drawn in pairs.

    A description, never a gate: a bootstrap of a rare event is too optimistic in small samples.
    """
    rng = np.random.default_rng(seed)
    differences = np.empty(draws)
    for draw in range(draws):
        rows = rng.integers(0, len(labels), len(labels))
        differences[draw] = macro_f1(labels[rows], reference[rows], classes) - macro_f1(
            labels[rows], variant[rows], classes
        )
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def expected_calibration_error(
    labels: Labels, scores: NDArray[np.floating[Any]], bins: int = 15
) -> float:
    """Mean gap of confidence and accuracy over equal-width bins (Naeini et al. 2015).

    Args:
        labels: (rows,) class indices.
        scores: (rows, classes), summing to 1 by row.
        bins: number of bins of the top score.
    """
    confidence = scores.max(axis=1)
    right = scores.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    weight = np.bincount(bin_of, minlength=bins)
    gap = np.bincount(bin_of, weights=confidence - right, minlength=bins)
    return float(np.abs(gap).sum() / max(weight.sum(), 1))
