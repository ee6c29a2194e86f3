"""The tables of a feedback store, the same in SQLite and PostgreSQL, and their version."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    insert,
    inspect,
    select,
    update,
)

from edgewright.errors import FeedbackStoreError
from edgewright.serve.store_url import SQLITE, SQLITE_PATIENCE_S

SCHEMA_VERSION: Final = 2  # 1 had no images
READABLE: Final = (1, SCHEMA_VERSION)
# Two replicas that start at once must not both make the tables. Any number will do for PostgreSQL.
_LOCK: Final = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "SELECT pg_advisory_xact_lock(4119280731)",
}
_LOOK_AGAIN_S: Final = 0.01

METADATA: Final = MetaData()

log = logging.getLogger(__name__)

schema: Final = Table("edgewright_schema", METADATA, Column("version", Integer, nullable=False))

# Times are microseconds since 1970, UTC.
feedback: Final = Table(
    "edgewright_feedback",
    METADATA,
    Column("entry_id", Text, primary_key=True),
    Column("prediction_id", Text),
    Column("label", Text, nullable=False),
    Column("text", Text),
    Column("note", Text),
    Column("model", Text),
    Column("created_us", BigInteger, nullable=False),
    Column("received_us", BigInteger, nullable=False),
    Index("edgewright_feedback_prediction", "prediction_id"),
    Index("edgewright_feedback_received", "received_us"),
)

predictions: Final = Table(
    "edgewright_predictions",
    METADATA,
    Column("prediction_id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("label", Text, nullable=False),
    Column("score", Float, nullable=False),
    Column("scores", JSON, nullable=False),  # label -> score
    Column("text", Text),
    Column("predicted_us", BigInteger, nullable=False),
    Column("image", Text),  # images.sha256
)
# For those that delete images; texts pay nothing for it.
_images_in_use: Final = Index(
    "edgewright_predictions_image",
    predictions.c.image,
    sqlite_where=predictions.c.image.is_not(None),
    postgresql_where=predictions.c.image.is_not(None),
)

# Every image once, however often it was classified.
images: Final = Table(
    "edgewright_images",
    METADATA,
    Column("sha256", Text, primary_key=True),
    Column("content", LargeBinary, nullable=False),  # the file as it came
)


def prepare(connection: Connection, store: str) -> None:
    """Make the tables, or bring those of an older version up to date, in one transaction.

    Raises:
        FeedbackStoreError: as ``check``.
    """
    connection.exec_driver_sql(_LOCK[connection.dialect.name])
    if not inspect(connection).has_table(schema.name):
        METADATA.create_all(connection)
        connection.execute(insert(schema).values(version=SCHEMA_VERSION))
    elif check(connection, store) == 1:
        _add_images(connection)
        connection.execute(update(schema).values(version=SCHEMA_VERSION))
        log.info("%s had schema version 1 and now has %d", store, SCHEMA_VERSION)


def _add_images(connection: Connection) -> None:
    """A server of the older version that runs meanwhile goes on: it names the columns it writes."""
    connection.exec_driver_sql(f"ALTER TABLE {predictions.name} ADD COLUMN image TEXT")
    _images_in_use.create(connection)
    images.create(connection)


def holds_images(connection: Connection) -> bool:
    """Whether the store has a place for images; one of version 1 has none."""
    return inspect(connection).has_table(images.name)


def check(connection: Connection, store: str) -> int:
    """The version of a store's schema, which can be read as it is.

    Raises:
        FeedbackStoreError: it is no store, or of a version that this edgewright does not know;
            ``store`` names it in the message.
    """
    if not inspect(connection).has_table(schema.name):
        raise FeedbackStoreError(
            f"{store} holds no feedback store; `edgewright serve --feedback URL` makes one"
        )
    versions: Sequence[int] = connection.execute(select(schema.c.version)).scalars().all()
    if len(versions) != 1:
        raise FeedbackStoreError(
            f"{store}: {schema.name} holds {len(versions)} versions instead of one; "
            "restore the store from a copy, or choose another"
        )
    if versions[0] not in READABLE:
        raise FeedbackStoreError(
            f"{store} has schema version {versions[0]}, and this edgewright knows version "
            f"{SCHEMA_VERSION}; install the edgewright that wrote it, or choose another store"
        )
    return versions[0]


def configure(kind: str, driver_connection: Any, *, create: bool) -> None:
    """Make a new DB-API connection durable: what is acknowledged must survive the loss of power.

    Without ``create`` the file of SQLite, which may be somebody else's, keeps its kind of log.
    """
    cursor = driver_connection.cursor()
    if kind == SQLITE:
        if create:
            _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous=FULL")
    else:
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') = 'off'"
        )
        driver_connection.commit()
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Let the file have a write-ahead log; replicas that start at once may all ask for it.

    Unlike a transaction, this change does not wait for others: SQLite answers "locked" at once.
    """
    until = time.monotonic() + SQLITE_PATIENCE_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(_LOOK_AGAIN_S)
