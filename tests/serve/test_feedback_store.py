"""The store of feedback and predictions, in SQLite and in a real PostgreSQL."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import OperationalError

from edgewright.errors import ConfigError, FeedbackStoreError
from edgewright.rpc_errors import to_status
from edgewright.serve.feedback_records import Entry, Outcome, Prediction
from edgewright.serve.feedback_schema import feedback, images
from edgewright.serve.feedback_store import FeedbackStore

from .databases import PASSWORD, USER, Postgres

T = TypeVar("T")


def entry(entry_id: str, prediction_id: str | None = None, **fields: Any) -> Entry:
    given = {"label": "sport", "text": None, "note": None, "model": "news"}
    return Entry(entry_id, prediction_id, **{**given, "created_us": 1, "received_us": 2, **fields})


def prediction(
    prediction_id: str, text: str | None = None, image: bytes | None = None
) -> Prediction:
    return Prediction(prediction_id, "news", 1, ("a", "b"), [1, 0], [0.75, 0.25], text, 3, image)


def rows(store: FeedbackStore, query: str) -> list[tuple[Any, ...]]:
    return store.transaction(lambda c: [tuple(row) for row in c.execute(text(query))])


def test_an_entry_is_stored_once_however_often_it_is_sent(store_url: str) -> None:
    with FeedbackStore.open(store_url) as store:
        first = store.add_feedback([entry("a", label="first"), entry("b"), entry("a")])
        assert first == [Outcome.STORED, Outcome.STORED, Outcome.DUPLICATE]
        assert store.add_feedback([entry("c"), entry("a")]) == [Outcome.STORED, Outcome.DUPLICATE]
    with FeedbackStore.open(store_url) as again:
        assert again.add_feedback([entry("a"), entry("c")]) == [Outcome.DUPLICATE] * 2
        told = rows(again, "SELECT entry_id, label FROM edgewright_feedback ORDER BY entry_id")
    assert told == [("a", "first"), ("b", "sport"), ("c", "sport")]


def test_an_entry_knows_whether_its_prediction_is_logged(store_url: str) -> None:
    with FeedbackStore.open(store_url) as store:
        assert store.add_feedback([entry("a", "p")]) == [Outcome.UNMATCHED]
        store.add_predictions([prediction("p"), prediction("q", "a text")])
        store.add_predictions([prediction("p")])  # a second time does no harm
        outcomes = store.add_feedback(
            [entry("a", "p"), entry("b", "p"), entry("c"), entry("d", "x")]
        )
        assert outcomes == [
            Outcome.DUPLICATE, Outcome.STORED, Outcome.STORED, Outcome.UNMATCHED,
        ]  # fmt: skip
        query = "SELECT prediction_id, label, score, text FROM edgewright_predictions ORDER BY 1"
        assert rows(store, query) == [("p", "b", 0.75, None), ("q", "b", 0.75, "a text")]


def test_an_image_is_stored_once_however_often_it_was_classified(store_url: str) -> None:
    one, other = b"\x89PNG\0 one", b"other \xff"
    with FeedbackStore.open(store_url) as store:
        store.add_predictions([prediction(f"p{index}", image=one) for index in range(50)])
        store.add_predictions([prediction(f"p{index}", image=one) for index in range(40, 100)])
        store.add_predictions([prediction("q", image=other), prediction("r")])
        kept = rows(store, "SELECT sha256, content FROM edgewright_images")
        assert {key: bytes(content) for key, content in kept} == {
            sha256(each).hexdigest(): each for each in (one, other)
        }
        query = "SELECT count(*) FROM edgewright_predictions WHERE image = '{}'"
        assert rows(store, query.format(sha256(one).hexdigest())) == [(100,)]
        assert rows(store, "SELECT image FROM edgewright_predictions WHERE prediction_id='r'") == [
            (None,)
        ]


def met(
    one: FeedbackStore,
    store_url: str,
    other_adds: Callable[[FeedbackStore], T],
    first: Callable[[Connection], None],
    last: Callable[[Connection], None],
) -> T:
    """What another replica's adding gives, which meets ``one`` between its first and last row."""
    with FeedbackStore.open(store_url) as other, ThreadPoolExecutor(1) as pool:
        with one.engine.begin() as connection:
            first(connection)
            adding = pool.submit(other_adds, other)
            wait([adding], timeout=0.5)  # until it waits for the first, and has not the last
            last(connection)
        return adding.result(timeout=60)


def test_replicas_that_store_the_same_images_do_not_wait_for_each_other_in_a_ring(
    store_url: str,
) -> None:
    first, last = sorted((b"one", b"other"), key=lambda each: sha256(each).hexdigest())

    def add(connection: Connection, content: bytes) -> None:
        values = {"sha256": sha256(content).hexdigest(), "content": content}
        connection.execute(insert(images).values(values))

    def add_twice(other: FeedbackStore) -> None:
        other.add_predictions([prediction("p", image=last), prediction("q", image=first)])

    with FeedbackStore.open(store_url) as one:
        met(one, store_url, add_twice, lambda c: add(c, first), lambda c: add(c, last))
        assert rows(one, "SELECT count(*) FROM edgewright_images") == [(2,)]
        assert rows(one, "SELECT count(*) FROM edgewright_predictions") == [(2,)]


def test_replicas_that_are_sent_the_same_entries_do_not_wait_for_each_other_in_a_ring(
    store_url: str,
) -> None:
    def add(connection: Connection, entry_id: str) -> None:
        values = {"entry_id": entry_id, "label": "a", "created_us": 1, "received_us": 2}
        connection.execute(insert(feedback).values(values))

    def add_both(other: FeedbackStore) -> list[Outcome]:
        return other.add_feedback([entry("a"), entry("b")])

    with FeedbackStore.open(store_url) as one:
        outcomes = met(one, store_url, add_both, lambda c: add(c, "a"), lambda c: add(c, "b"))
    assert outcomes == [Outcome.DUPLICATE] * 2


def test_many_entries_go_in_one_transaction(store_url: str) -> None:
    sent = [entry(f"{index}", f"p{index % 1200}") for index in range(3000)]
    with FeedbackStore.open(store_url) as store:
        store.add_predictions([prediction(f"p{index}") for index in range(600)])
        outcomes = store.add_feedback([*sent, *sent])
        assert outcomes[3000:] == [Outcome.DUPLICATE] * 3000
        assert outcomes[:3000].count(Outcome.STORED) == 1800
        assert rows(store, "SELECT count(*) FROM edgewright_feedback") == [(3000,)]


def test_any_text_comes_back_as_it_was(store_url: str) -> None:
    odd = "tab\t newline\n 'quote\" % :name \\ ÄÖ 漢字 \U0001f600 \x01 \u202e"
    with FeedbackStore.open(store_url) as store:
        store.add_feedback([entry(odd, odd, label=odd, text=odd, note=odd, model=odd)])
        query = "SELECT entry_id, prediction_id, label, text, note, model FROM edgewright_feedback"
        assert rows(store, query) == [(odd,) * 6]


def test_replicas_share_one_store(store_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(FeedbackStore.open, [store_url] * 4))  # all make the tables at once
        sent = [entry(f"{index}") for index in range(200)]
        told = list(pool.map(lambda store: store.add_feedback(sent), stores))
    for store in stores:
        store.close()
    stored = [sum(each is Outcome.STORED for each in column) for column in zip(*told, strict=True)]
    assert stored == [1] * 200


def test_replicas_that_start_at_once_wait_for_each_other(tmp_path: Path) -> None:
    # SQLite itself does not wait here: a lock held by another is an error at once.
    file = tmp_path / "feedback.db"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(FeedbackStore.open, f"sqlite:///{file}")
        assert not wait([opening], timeout=0.5).done
        other.execute("COMMIT")
        opening.result(timeout=60).close()
    other.close()


def test_a_store_of_another_schema_is_refused(store_url: str) -> None:
    with FeedbackStore.open(store_url) as store:
        store.transaction(lambda c: c.execute(text("UPDATE edgewright_schema SET version = 3")))
    for create in (True, False):
        with pytest.raises(FeedbackStoreError, match=r"has schema version 3, and .* version 2"):
            FeedbackStore.open(store_url, create=create)


def test_reading_makes_no_store(store_url: str, tmp_path: Path) -> None:
    told = r"there is no such file|holds no feedback store"  # of SQLite, of PostgreSQL
    with pytest.raises((ConfigError, FeedbackStoreError), match=told):
        FeedbackStore.open(store_url, create=False)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "feedback.db"
    file.write_bytes(b"text,label\n" * 1000)
    with pytest.raises(FeedbackStoreError, match=r"feedback\.db: file is not a database"):
        FeedbackStore.open(f"sqlite:///{file}")
    assert file.read_bytes() == b"text,label\n" * 1000


@pytest.mark.parametrize("statement", ["CREATE TABLE feedback (id)", "SELECT 1"])
def test_another_program_s_database_is_left_as_it_is(tmp_path: Path, statement: str) -> None:
    file = tmp_path / "other.db"
    with sqlite3.connect(file) as other:
        other.execute(statement)
    other.close()
    before = file.read_bytes()
    with pytest.raises(FeedbackStoreError, match="holds no feedback store"):
        FeedbackStore.open(f"sqlite:///{file}", create=False)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "without a path nothing would be durable"),
        ("sqlite:///:memory:", "without a path nothing would be durable"),
        ("sqlite:///file:x?mode=memory", "without a path nothing would be durable"),
        ("sqlite://feedback.db", "without a path|three slashes"),
        ("sqlite:///x.db?timeout=3", "three slashes"),
        ("mysql://me:geheim@host/db", "mysql: is not a database we write"),
        ("postgres://me:geheim@host/db", "expected"),
        ("postgresql+asyncpg://me:geheim@host/db", "expected"),
        ("feedback.db", "expected"),
        ("", "expected"),
        ("postgresql://me:geheim@host:port/db", "expected"),
    ],
)
def test_a_url_of_another_kind_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        FeedbackStore.open(url)
    assert "geheim" not in str(refused.value)


@pytest.mark.parametrize("place", ["missing/feedback.db", "."])
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigError, match=r"make it first|give the path of a file"):
        FeedbackStore.open(f"sqlite:///{tmp_path / place}")


def test_a_folder_of_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ConfigError, match="is not writable for this user"):
        FeedbackStore.open(f"sqlite:///{tmp_path / 'feedback.db'}")


def test_sqlite_waits_for_the_disk(tmp_path: Path) -> None:
    with FeedbackStore.open(f"sqlite:///{tmp_path / 'feedback.db'}") as store:
        assert rows(store, "PRAGMA journal_mode") == [("wal",)]
        assert rows(store, "PRAGMA synchronous") == [(2,)]


def test_postgresql_waits_for_the_disk_whatever_the_database_says(postgres: Postgres) -> None:
    url = postgres.new_database()
    postgres.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = off")
    with FeedbackStore.open(url) as store:
        assert rows(store, "SHOW synchronous_commit") == [("on",)]


def test_postgresql_away_is_told_without_the_password(postgres: Postgres) -> None:
    away = f"postgresql://{USER}:{PASSWORD}@127.0.0.1:1/db"
    with pytest.raises(FeedbackStoreError, match=r":\*\*\*@127\.0\.0\.1:1/db: .*refused") as told:
        FeedbackStore.open(away)
    wrong = postgres.new_database().replace(PASSWORD, "verkehrt")
    with pytest.raises(FeedbackStoreError, match="authentication failed") as refused:
        FeedbackStore.open(wrong)
    in_query = f"postgresql://127.0.0.1:{postgres.port}/no-such?user={USER}&password={PASSWORD}"
    with pytest.raises(FeedbackStoreError, match="does not exist") as unknown:
        FeedbackStore.open(in_query)
    for error in (told, refused, unknown):
        assert PASSWORD not in str(error.value)
        assert "verkehrt" not in str(error.value)


def test_a_restart_of_postgresql_between_two_writes_goes_unnoticed(postgres: Postgres) -> None:
    with FeedbackStore.open(postgres.new_database()) as store:
        assert store.add_feedback([entry("a")]) == [Outcome.STORED]
        postgres.stop()
        postgres.start()
        assert store.add_feedback([entry("a"), entry("b")]) == [Outcome.DUPLICATE, Outcome.STORED]


def failing(error: BaseException) -> Callable[[Any], Any]:
    def work(_connection: Any) -> Any:
        raise OperationalError("INSERT", {}, error)

    return work


def sqlite_error(name: str) -> sqlite3.Error:
    error = sqlite3.OperationalError(name)
    error.sqlite_errorname = name
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (sqlite_error("SQLITE_FULL"), True),
        (sqlite_error("SQLITE_IOERR_WRITE"), False),
        (sqlite_error("SQLITE_BUSY"), False),
        (psycopg.errors.DiskFull("no space"), True),
        (psycopg.errors.AdminShutdown("shutdown"), False),
    ],
)
def test_a_full_disk_is_told_from_other_failures(
    tmp_path: Path, error: BaseException, full: bool
) -> None:
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    with FeedbackStore.open(url) as store, pytest.raises(FeedbackStoreError) as told:
        store.transaction(failing(error))
    cause = told.value.__cause__
    assert (isinstance(cause, OSError) and cause.errno == errno.ENOSPC) is full
    assert to_status(told.value).code == (8 if full else 14)  # RESOURCE_EXHAUSTED, UNAVAILABLE
