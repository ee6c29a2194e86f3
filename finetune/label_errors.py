"""Likely label errors: rows whose label a probe that never saw them finds hard to believe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.finetune.linear_probe import (
    FIT_ROWS,
    FOLDS,
    Features,
    Labels,
    cross_validated_probabilities,
)

# A class of fewer rows than folds is missing, or nearly, from what some fold learns from.
MIN_CLASS_ROWS: Final = FOLDS
FEW_ROWS: Final = 500
# Of the errors that always answering the commonest class makes, the share that a probe must avoid
# before its disagreement says anything about a label.
MIN_SKILL: Final = 0.25
_REPEATS: Final = 5  # below FEW_ROWS, where one draw of the folds decides too much


@dataclass(frozen=True)
class LabelError:
    """Row ``row`` says one class and its features another, with the probe's probabilities."""

    row: int
    label: int
    suggested: int
    label_probability: float
    suggested_probability: float


@dataclass(frozen=True, eq=False)
class LabelErrors:
    """The rows flagged, the least believable label first.

    ``judged`` rows were asked about; those of ``small_classes`` were not. ``agreement`` is the
    share of the judged rows whose label the probe gives too; where that shows too little skill to
    judge anyone, ``is_skilled`` is false and nothing is flagged.
    """

    judged: int
    small_classes: tuple[int, ...]
    agreement: float | None
    is_skilled: bool
    repeats: int
    ranked: tuple[LabelError, ...]

    def method(self) -> dict[str, Any]:
        """How they were found, for the record."""
        return {
            "probe": "logistic regression on mean-pooled features of the pre-trained encoder",
            "folds": FOLDS,
            "repeats": self.repeats,
            "least_skill": MIN_SKILL,
            "largest_fit": FIT_ROWS,
            "flagged_by": "cleanlab prune_by_class",
            "ranked_by": "self_confidence",
        }


def find_label_errors(
    features: Features, labels: Labels, classes: int, *, seed: int
) -> LabelErrors:
    """Flag and rank rows by confident learning (Northcutt, Jiang and Chuang 2021), with cleanlab.

    How many labels of each class are wrong is estimated from out-of-fold probabilities; that many
    rows are flagged, those with the lowest probability of their own label, and ranked by it
    (Kuan and Mueller 2022: self-confidence).

    Args:
        features: (rows, dims).
        labels: (rows,) class indices below ``classes``.
        classes: how many there are.
        seed: of the folds.

    Raises:
        DataError: a feature is not a finite number.
    """
    counts = np.bincount(labels, minlength=classes)
    judged = np.flatnonzero(counts[labels] >= MIN_CLASS_ROWS)
    small = tuple(np.flatnonzero((counts > 0) & (counts < MIN_CLASS_ROWS)).tolist())
    present, targets = np.unique(labels[judged], return_inverse=True)
    repeats = _REPEATS if len(judged) < FEW_ROWS else 1
    if len(present) < 2:
        return LabelErrors(0, small, None, False, repeats, ())
    probabilities = cross_validated_probabilities(
        features[judged], targets, len(present), seed=seed, repeats=repeats
    )
    best = probabilities.argmax(axis=1)
    agreement = float((best == targets).mean())
    commonest = float(np.bincount(targets).max() / len(targets))
    if 1 - agreement > (1 - MIN_SKILL) * (1 - commonest):
        return LabelErrors(len(judged), small, agreement, False, repeats, ())
    ranked = tuple(
        LabelError(
            row=int(judged[place]),
            label=int(present[targets[place]]),
            suggested=int(present[best[place]]),
            label_probability=float(probabilities[place, targets[place]]),
            suggested_probability=float(probabilities[place, best[place]]),
        )
        for place in _flag(targets, probabilities)
        if best[place] != targets[place]
    )
    return LabelErrors(len(judged), small, agreement, True, repeats, ranked)


def _flag(targets: Labels, probabilities: NDArray[np.float64]) -> list[int]:
    from cleanlab.filter import find_label_issues

    flagged = find_label_issues(
        targets,
        probabilities,
        filter_by="prune_by_class",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,  # processes would copy everything, and be slower
    )
    return [int(place) for place in flagged]
