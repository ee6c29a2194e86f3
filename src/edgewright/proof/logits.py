"""What a session answers on rows, run as it would be served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import Session
from edgewright.metrics import Labels
from edgewright.model_file import FEATURES
from edgewright.preprocess import Preprocessor, Row

BATCH_ROWS: Final = 16


def predict_logits(
    session: Session,
    preprocessor: Preprocessor,
    rows: Sequence[Row],
    *,
    one_row_at_a_time: bool = False,
) -> NDArray[np.float32]:
    """What a session answers as it would be served: in batches of 16, or row by row.

    Rows of about the same length go together, which saves padding and changes no answer of a
    session that is independent of the batch.

    Returns:
        Logits of shape (rows, classes), in the order of ``rows``.
    """
    groups = batches_by_length(rows, size=1 if one_row_at_a_time else BATCH_ROWS)
    return predict_batches(session, preprocessor, rows, groups)


def answers(logits: NDArray[np.floating[Any]]) -> Labels:
    """Label indices of shape (rows,); -1, which is nobody's label, where a logit is no number.

    ``argmax`` alone would take such a row for one of the first classes, and now and then for right.
    """
    best = np.asarray(logits.argmax(axis=1), dtype=np.int64)
    best[~np.isfinite(logits).all(axis=1)] = -1
    return best


def predict_features(
    session: Session,
    preprocessor: Preprocessor,
    rows: Sequence[Row],
    *,
    one_row_at_a_time: bool = False,
) -> NDArray[np.float32]:
    """What the head reads, of shape (rows, width); run as by ``predict_logits``."""
    groups = batches_by_length(rows, size=1 if one_row_at_a_time else BATCH_ROWS)
    return predict_batches(session, preprocessor, rows, groups, FEATURES)


def batches_by_length(
    rows: Sequence[Row], size: int = BATCH_ROWS, *, equal_lengths: bool = False
) -> list[list[int]]:
    """Indices of rows that make a batch, from the shortest to the longest."""
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index])):
        last = batches[-1] if batches else []
        longer = equal_lengths and bool(last) and len(rows[index]) > len(rows[last[0]])
        if not last or len(last) == size or longer:
            batches.append([index])
        else:
            last.append(index)
    return batches


def predict_batches(
    session: Session,
    preprocessor: Preprocessor,
    rows: Sequence[Row],
    batches: Sequence[Sequence[int]],
    output: str | None = None,
) -> NDArray[np.float32]:
    """An output by row, of batches that are given as indices of ``rows``; None: the logits."""
    parts = []
    for batch in batches:
        arrays = preprocessor.pad([rows[index] for index in batch]).arrays
        found = session.run(arrays) if output is None else session.run(arrays, [output])
        parts.append(next(iter(found.values())))
    answers = np.concatenate(parts)
    restored = np.empty_like(answers, dtype=np.float32)
    restored[np.concatenate(batches)] = answers
    return restored
