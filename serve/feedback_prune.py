"""What is old, out of a store for good; some rows a transaction, so that servers write between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, delete, exists, select

from edgewright.serve.feedback_schema import feedback, holds_images, images, predictions
from edgewright.serve.feedback_store import FeedbackStore

ROWS_AT_ONCE: Final = 500
# Servers store a prediction, and then its image unless it is there: it must not go in between.
_LOCK: Final = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": f"LOCK TABLE {predictions.name} IN SHARE ROW EXCLUSIVE MODE",
}


@dataclass
class Pruned:
    """What was deleted."""

    entries: int = 0
    predictions: int = 0
    images: int = 0


def prune(store: FeedbackStore, before: datetime) -> Pruned:
    """Delete entries received and predictions made before a time, and images that nobody names.

    A prediction with a later entry stays, and so does its image.

    Raises:
        FeedbackStoreError: the store failed; what was deleted so far is.
    """
    before_us = round(before.timestamp() * 1e6)
    done = Pruned()

    def entries(connection: Connection) -> bool:
        old = select(feedback.c.entry_id).where(feedback.c.received_us < before_us)
        some = old.limit(ROWS_AT_ONCE).scalar_subquery()
        gone = connection.execute(delete(feedback).where(feedback.c.entry_id.in_(some))).rowcount
        done.entries += gone
        return gone > 0

    def others(connection: Connection) -> bool:
        spoken_of = exists().where(feedback.c.prediction_id == predictions.c.prediction_id)
        old = select(predictions.c.prediction_id).where(
            predictions.c.predicted_us < before_us, ~spoken_of
        )
        ids = connection.execute(old.limit(ROWS_AT_ONCE)).scalars().all()
        chosen = predictions.c.prediction_id.in_(ids)
        keys: set[str] = set()
        if holds_images(connection):
            used = select(predictions.c.image).where(chosen, predictions.c.image.is_not(None))
            keys = set(connection.execute(used).scalars())
        done.predictions += connection.execute(delete(predictions).where(chosen)).rowcount
        done.images += _delete_images(connection, keys)
        return len(ids) > 0

    for work in (entries, others):
        while store.transaction(lambda connection, work=work: _locked(connection, work)):  # type: ignore[misc]
            pass
    return done


def _locked(connection: Connection, work: Callable[[Connection], bool]) -> bool:
    connection.exec_driver_sql(_LOCK[connection.dialect.name])
    return work(connection)


def _delete_images(connection: Connection, keys: set[str]) -> int:
    """Delete those of ``keys``, SHA-256, that no prediction names any more."""
    if not keys:
        return 0
    named = exists().where(predictions.c.image == images.c.sha256)
    unused = delete(images).where(images.c.sha256.in_(sorted(keys)), ~named)
    return connection.execute(unused).rowcount
