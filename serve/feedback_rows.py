"""Entries of a store beside the predictions that they are about.

Of several entries about one prediction the one received last counts; the others are superseded. An
entry without a prediction stands for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, Select, case, func, null, select

from edgewright.serve.feedback_schema import feedback, holds_images, predictions

ROWS_AT_ONCE: Final = 2000


@dataclass(frozen=True)
class Selection:
    """Which entries: received from ``since`` on, about one model; None takes all."""

    since: datetime | None = None  # with a time zone
    model: str | None = None

    @property
    def since_us(self) -> int | None:
        """Microseconds since 1970."""
        return None if self.since is None else round(self.since.timestamp() * 1e6)


def joined(connection: Connection, selection: Selection) -> Select[Any]:
    """Every selected entry beside its prediction, with its rank: 1 is the one that counts.

    The columns are entry_id, prediction_id, label, received_us, predicted (label), version, model,
    text, image (SHA-256) and rank.
    """
    own = case((feedback.c.prediction_id.is_(None), feedback.c.entry_id), else_=None)
    rank = func.row_number().over(
        partition_by=(feedback.c.prediction_id, own),
        order_by=(feedback.c.received_us.desc(), feedback.c.entry_id.desc()),
    )
    model = func.coalesce(predictions.c.model, feedback.c.model)
    image = predictions.c.image if holds_images(connection) else null()
    query = select(
        feedback.c.entry_id,
        feedback.c.prediction_id,
        feedback.c.label,
        feedback.c.received_us,
        predictions.c.label.label("predicted"),
        predictions.c.version,
        model.label("model"),
        # What the model has seen goes before what the sender says it was.
        func.coalesce(predictions.c.text, feedback.c.text).label("text"),
        image.label("image"),
        rank.label("rank"),
    ).select_from(
        feedback.outerjoin(predictions, feedback.c.prediction_id == predictions.c.prediction_id)
    )
    if selection.since_us is not None:
        query = query.where(feedback.c.received_us >= selection.since_us)
    if selection.model is not None:
        query = query.where(model == selection.model)
    return query


@contextmanager
def pages(connection: Connection, selection: Selection) -> Iterator[Iterator[Sequence[RowMapping]]]:
    """The rows of ``joined``, oldest first, some at a time."""
    query = joined(connection, selection).order_by(feedback.c.received_us, feedback.c.entry_id)
    # Of this statement alone: the connection may answer others in between.
    with connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}) as streamed:
        yield streamed.mappings().partitions()
