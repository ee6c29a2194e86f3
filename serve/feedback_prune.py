"""What is old, out of a store for good, in short transactions with gaps for those who write.

Old predictions are looked for beforehand, where that keeps nobody waiting: there is no index of
their times. The transaction that deletes them looks again, at these rows alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

from sqlalchemy import ColumnElement, Connection, delete, exists, func, literal, null, select

from edgewright.serve.feedback_schema import feedback, holds_images, images, predictions
from edgewright.serve.feedback_store import FeedbackStore

T = TypeVar("T")

ROWS_AT_ONCE: Final = 500  # deleted in one transaction
IMAGE_BYTES_AT_ONCE: Final = 4 << 20  # likewise, but at least one image
ROWS_READ_AT_ONCE: Final = 5000
# Servers store a prediction, and then its image unless it is there; or feedback, and then look
# whether its prediction is. Neither must come between our look and our deletion.
_LOCK: Final = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": f"LOCK TABLE {predictions.name}, {feedback.name} IN SHARE ROW EXCLUSIVE MODE",
}


@dataclass
class Pruned:
    """What was deleted."""

    entries: int = 0
    predictions: int = 0
    images: int = 0


def prune(
    store: FeedbackStore,
    before: datetime,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Pruned:
    """Delete entries received and predictions made before a time, and images that nobody names.

    A prediction with a later entry stays, and so does its image. The store is free half the time.

    Raises:
        FeedbackStoreError: the store failed; what was deleted so far is.
    """
    before_us = round(before.timestamp() * 1e6)
    done = Pruned()
    write = _Turns(store, clock, sleep)
    while gone := write(partial(_delete_entries, before_us=before_us)):
        done.entries += gone
    with_images = store.transaction(holds_images)
    for page in _pages(store, before_us, with_images):
        for ids in _batches(page):
            rows, files = write(
                partial(_delete_predictions, ids=ids, before_us=before_us, with_images=with_images)
            )
            done.predictions += rows
            done.images += files
    return done


@dataclass(frozen=True)
class _Turns:
    """Runs work that locks the store, and then leaves it to others for as long as that took.

    SQLite is not fair: who waits looks now and then, and finds no gap that is too short.
    """

    store: FeedbackStore
    clock: Callable[[], float]
    sleep: Callable[[float], None]

    def __call__(self, work: Callable[[Connection], T]) -> T:
        locked = self.clock()

        def alone(connection: Connection) -> T:
            nonlocal locked
            connection.exec_driver_sql(_LOCK[connection.dialect.name])
            locked = self.clock()
            return work(connection)

        done = self.store.transaction(alone)
        self.sleep(self.clock() - locked)
        return done


def _pages(
    store: FeedbackStore, before_us: int, with_images: bool
) -> Iterator[Sequence[tuple[str, int]]]:
    """Old predictions that nobody spoke of, as ``_page`` has them; every row is looked at once."""
    last: str | None = ""
    while last is not None:
        read = partial(_page, after=last, before_us=before_us, with_images=with_images)
        last, old = store.transaction(read)
        yield old


def _page(
    connection: Connection, *, after: str, before_us: int, with_images: bool
) -> tuple[str | None, Sequence[tuple[str, int]]]:
    """The last id of the next rows, None at the end; ids and bytes of image of the old ones."""
    key = predictions.c.prediction_id
    following = select(key).where(key > after).order_by(key).limit(ROWS_READ_AT_ONCE).subquery()
    last = connection.execute(select(func.max(following.c.prediction_id))).scalar()
    if last is None:
        return None, []
    size: ColumnElement[int] = literal(0)
    if with_images:
        file = select(func.length(images.c.content)).where(images.c.sha256 == predictions.c.image)
        size = func.coalesce(file.scalar_subquery(), 0)
    old = select(key, size).where(key > after, key <= last, _is_old(before_us)).order_by(key)
    return last, [(row[0], row[1]) for row in connection.execute(old)]


def _batches(old: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Ids to delete at once, from ids and the bytes of their images."""
    ids: list[str] = []
    total = 0
    for prediction_id, size in old:
        if ids and (len(ids) == ROWS_AT_ONCE or total + size > IMAGE_BYTES_AT_ONCE):
            yield ids
            ids, total = [], 0
        ids.append(prediction_id)
        total += size
    if ids:
        yield ids


def _is_old(before_us: int) -> ColumnElement[bool]:
    """Of a prediction: made before the time, and nobody spoke of it."""
    spoken_of = exists().where(feedback.c.prediction_id == predictions.c.prediction_id)
    return (predictions.c.predicted_us < before_us) & ~spoken_of


def _delete_entries(connection: Connection, *, before_us: int) -> int:
    old = select(feedback.c.entry_id).where(feedback.c.received_us < before_us)
    some = old.limit(ROWS_AT_ONCE).scalar_subquery()
    return connection.execute(delete(feedback).where(feedback.c.entry_id.in_(some))).rowcount


def _delete_predictions(
    connection: Connection, *, ids: Sequence[str], before_us: int, with_images: bool
) -> tuple[int, int]:
    """Delete those of ``ids`` that are old still; how many, and how many images with them."""
    chosen = delete(predictions).where(predictions.c.prediction_id.in_(ids), _is_old(before_us))
    image = predictions.c.image if with_images else null()
    keys = connection.execute(chosen.returning(image)).scalars().all()
    return len(keys), _delete_images(connection, set(filter(None, keys)))


def _delete_images(connection: Connection, keys: set[str]) -> int:
    """Delete those of ``keys``, SHA-256, that no prediction names any more."""
    if not keys:
        return 0
    named = exists().where(predictions.c.image == images.c.sha256)
    unused = delete(images).where(images.c.sha256.in_(sorted(keys)), ~named)
    return connection.execute(unused).rowcount
