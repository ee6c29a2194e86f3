"""What a candidate answers, run exactly as it would be served: in batches, or one row at a time.

Where a candidate's answers depend on the rows beside it (dynamic int8 scales activations over the
whole batch), only its answers to rows alone mean anything: it is searched, timed, certified and
served row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import Session, softmax
from edgewright.preprocess import TextPreprocessor, TokenRow

BATCH_ROWS: Final = 16


def answer(
    session: Session,
    preprocessor: TextPreprocessor,
    rows: Sequence[TokenRow],
    *,
    row_by_row: bool,
) -> NDArray[np.float32]:
    """Softmax scores of shape (rows, classes), in the order of ``rows``.

    In batches, rows of about the same length go together: less padding, the same answers.
    """
    size = 1 if row_by_row else BATCH_ROWS
    order = np.argsort([len(row) for row in rows], kind="stable")
    scores: list[NDArray[np.float32]] = []
    for start in range(0, len(order), size):
        arrays = preprocessor.pad([rows[index] for index in order[start : start + size]]).arrays
        feed = {spec.name: arrays[spec.name].astype(spec.dtype, copy=False) for spec in session.inputs}
        scores.append(softmax(session.run(feed)[session.outputs[0].name]))
    answers = np.empty((len(rows), scores[0].shape[1]), np.float32)
    answers[order] = np.concatenate(scores)
    return answers
