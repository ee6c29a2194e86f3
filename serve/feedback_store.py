"""The store of feedback and predictions: SQLite in a file, or PostgreSQL for several replicas."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, TypeVar

from sqlalchemy import Column, Connection, Engine, create_engine, event, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from edgewright.errors import ConfigError, FeedbackStoreError
from edgewright.manifest import sha256_bytes
from edgewright.serve import feedback_schema
from edgewright.serve.feedback_records import Entry, Logged, Outcome, Prediction
from edgewright.serve.feedback_schema import feedback, images, predictions
from edgewright.serve.store_url import SQLITE, StoreUrl

T = TypeVar("T")

# Both dialects write INSERT ... ON CONFLICT DO NOTHING RETURNING alike.
_INSERT: Final[dict[str, Callable[..., Any]]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
_POSTGRESQL_DISK_FULL: Final = "53100"  # SQLSTATE
_LEAST_FREE_BYTES: Final = 1 << 16  # below that SQLite cannot even grow its index of the WAL
_IDS_AT_ONCE: Final = 500  # in one IN (...)


class FeedbackStore:
    """One store. Every method blocks, and belongs to one thread at a time; ``logged`` to another.

    Each write is one transaction: when it returns, its rows survive a crash and the loss of power;
    when it raises, sending the same rows again is harmless.
    """

    def __init__(self, url: StoreUrl, engine: Engine) -> None:
        self.url = url
        self.engine = engine

    @classmethod
    def open(cls, text: str, *, create: bool = True) -> FeedbackStore:
        """Connect, and see that the tables are ours.

        Where ``create``, they are made, or brought up to date; else they stay as they are.

        Raises:
            ConfigError: no URL of ours, a file that cannot be written there or, without
                ``create``, is not there.
            BackendUnavailableError: the driver is not installed.
            FeedbackStoreError: the database does not answer, is damaged, holds no store (without
                ``create``), or one of a newer version.
        """
        url = StoreUrl.parse(text)
        if url.kind == SQLITE:
            _check_file(url, create=create)
        engine = create_engine(url.url, connect_args=url.connect_args, pool_size=1, max_overflow=1)

        @event.listens_for(engine, "connect")
        def configure(driver_connection: Any, _record: Any) -> None:
            feedback_schema.configure(url.kind, driver_connection, create=create)

        store = cls(url, engine)
        step = feedback_schema.prepare if create else feedback_schema.check
        try:
            store.transaction(lambda connection: step(connection, str(url)))
        except BaseException:
            store.close()
            raise
        return store

    def add_feedback(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Store ``entries`` in one transaction; what became of each, in their order.

        Raises:
            FeedbackStoreError: nothing was stored, or it cannot be told whether it was.
        """
        unique = {entry.entry_id: entry for entry in reversed(entries)}  # the first of each id
        rows = [_feedback_row(entry) for entry in unique.values()]
        asked = {entry.prediction_id for entry in unique.values() if entry.prediction_id}

        def write(connection: Connection) -> tuple[set[str], set[str]]:
            new = self._insert(connection, feedback.c.entry_id, rows)
            return new, _present(connection, predictions.c.prediction_id, sorted(asked))

        new, logged = self.transaction(write)
        outcomes = []
        for entry in entries:
            outcomes.append(_outcome(entry, entry.entry_id in new, logged))
            new.discard(entry.entry_id)  # a second one of this id is none
        return outcomes

    def add_predictions(self, logged: Sequence[Prediction]) -> None:
        """Store ``logged`` in one transaction; those that are there already are left as they are.

        Raises:
            FeedbackStoreError: as ``add_feedback``.
        """
        rows, files = [], {}
        for each in logged:
            sha256 = None
            if each.image is not None:
                sha256 = sha256_bytes(each.image)
                files[sha256] = each.image
            rows.append(_prediction_row(each, sha256))

        def write(connection: Connection) -> None:
            # In this order: who prunes waits for the predictions, and then keeps their images.
            self._insert(connection, predictions.c.prediction_id, rows)
            self._insert_images(connection, files)

        self.transaction(write)

    def logged(self, prediction_ids: Sequence[str]) -> dict[str, Logged]:
        """Those of these predictions that are logged, by id.

        Raises:
            FeedbackStoreError: the store failed.
        """
        columns = (predictions.c.prediction_id, predictions.c.model, predictions.c.scores)

        def read(connection: Connection) -> dict[str, Logged]:
            found = {}
            for start in range(0, len(prediction_ids), _IDS_AT_ONCE):
                some = prediction_ids[start : start + _IDS_AT_ONCE]
                query = select(*columns).where(columns[0].in_(some))
                for prediction_id, model, scores in connection.execute(query):
                    found[prediction_id] = Logged(model, scores.keys())
            return found

        return self.transaction(read)

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """What ``work`` returns, once it is committed.

        A connection that turns out to be dead, as after a restart of PostgreSQL, is replaced once.

        Raises:
            FeedbackStoreError: the database failed; from an OSError (ENOSPC) when its disk is full.
        """
        try:
            return self._once(work)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise self._failure(error) from self._cause(error)
        try:
            return self._once(work)
        except DBAPIError as error:
            raise self._failure(error) from self._cause(error)

    def close(self) -> None:
        """Close its connections."""
        self.engine.dispose()

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _once(self, work: Callable[[Connection], T]) -> T:
        with self.engine.begin() as connection:
            return work(connection)

    def _insert(self, connection: Connection, key: Any, rows: Sequence[dict[str, Any]]) -> set[str]:
        """Keys of the rows that were new.

        Inserted by key, so that replicas given the same rows never wait for each other in a circle.
        """
        if not rows:
            return set()
        rows = sorted(rows, key=lambda row: str(row[key.name]))
        statement = _INSERT[self.url.kind](key.table).on_conflict_do_nothing(index_elements=[key])
        return set(connection.execute(statement.returning(key), rows).scalars())

    def _insert_images(self, connection: Connection, files: Mapping[str, bytes]) -> None:
        """Add those of ``files``, by SHA-256, that are not there."""
        there = _present(connection, images.c.sha256, sorted(files))
        # In one order, or two replicas that add the same images may each wait for the other.
        rows = [{"sha256": each, "content": files[each]} for each in sorted(files.keys() - there)]
        if rows:
            statement = _INSERT[self.url.kind](images)
            connection.execute(statement.on_conflict_do_nothing(), rows)

    def _failure(self, error: DBAPIError) -> FeedbackStoreError:
        told = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
        return FeedbackStoreError(self.url.scrubbed(f"feedback store {self.url}: {told[0]}"))

    def _cause(self, error: DBAPIError) -> BaseException:
        """``rpc_errors`` knows a full disk by its errno."""
        if self._is_disk_full(error.orig):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return error

    def _is_disk_full(self, error: BaseException | None) -> bool:
        if not isinstance(error, sqlite3.Error):
            return getattr(error, "sqlstate", None) == _POSTGRESQL_DISK_FULL
        name = str(getattr(error, "sqlite_errorname", ""))
        return name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and self._no_space())

    def _no_space(self) -> bool:
        path = self.url.path
        if path is None:
            return False
        try:
            system = os.statvfs(path.parent)
        except OSError:
            return False
        return system.f_bavail * system.f_frsize < _LEAST_FREE_BYTES


def _check_file(url: StoreUrl, *, create: bool) -> None:
    """SQLite's own "unable to open database file" does not say why."""
    path = url.path
    if path is None:
        return
    if not create and not path.is_file():
        raise ConfigError(f"feedback store {url}: there is no such file; check the path")
    if path.is_dir():
        raise ConfigError(f"feedback store {url}: {path} is a folder; give the path of a file")
    if not path.parent.is_dir():
        raise ConfigError(f"feedback store {url}: there is no folder {path.parent}; make it first")
    # SQLite writes its journal beside the file.
    written = [path.parent, *([path] if path.exists() else [])]
    for each in written:
        if not os.access(each, os.W_OK):
            raise ConfigError(f"feedback store {url}: {each} is not writable for this user")


def _present(connection: Connection, column: Column[Any], ids: Sequence[str]) -> set[str]:
    """Those of ``ids`` that are in ``column``."""
    found: set[str] = set()
    for start in range(0, len(ids), _IDS_AT_ONCE):
        some = ids[start : start + _IDS_AT_ONCE]
        found.update(connection.execute(select(column).where(column.in_(some))).scalars())
    return found


def _outcome(entry: Entry, new: bool, logged: set[str]) -> Outcome:
    if not new:
        return Outcome.DUPLICATE
    if entry.prediction_id and entry.prediction_id not in logged:
        return Outcome.UNMATCHED
    return Outcome.STORED


def _feedback_row(entry: Entry) -> dict[str, Any]:
    return {
        "entry_id": entry.entry_id,
        "prediction_id": entry.prediction_id,
        "label": entry.label,
        "text": entry.text,
        "note": entry.note,
        "model": entry.model,
        "created_us": entry.created_us,
        "received_us": entry.received_us,
    }


def _prediction_row(each: Prediction, sha256: str | None) -> dict[str, Any]:
    """``sha256``: of its image."""
    scores = [round(score, 6) for score in each.scores]  # float32 has no more digits
    named = [each.labels[index] for index in each.classes]
    return {
        "prediction_id": each.prediction_id,
        "model": each.model,
        "version": each.version,
        "label": named[0],
        "score": scores[0],
        "scores": dict(zip(named, scores, strict=True)),
        "text": each.text,
        "predicted_us": each.predicted_us,
        "image": sha256,
    }
