"""``edgewright feedback prune``: what is old goes, and nothing that somebody still names."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError

from edgewright.serve import feedback_prune, feedback_store
from edgewright.serve.feedback_prune import Pruned, prune
from edgewright.serve.feedback_records import Entry, Outcome, Prediction
from edgewright.serve.feedback_store import FeedbackStore

from .old_store import write_old_store
from .test_feedback_cli import Feedback
from .test_feedback_cli import feedback as feedback
from .test_feedback_store import rows

NOW = datetime.now(UTC)
MONTH_AGO = NOW - timedelta(days=30)


def microseconds(days_ago: float) -> int:
    return round((NOW - timedelta(days=days_ago)).timestamp() * 1e6)


def prediction(prediction_id: str, days_ago: float, image: bytes | None = None) -> Prediction:
    when = microseconds(days_ago)
    return Prediction(prediction_id, "pets", 1, ("a", "b"), [0, 1], [0.7, 0.3], None, when, image)


def entry(entry_id: str, prediction_id: str, days_ago: float) -> Entry:
    when = microseconds(days_ago)
    return Entry(entry_id, prediction_id, "a", None, None, "pets", when, when)


def held(store: FeedbackStore) -> dict[str, list[Any]]:
    return {
        column: sorted(row[0] for row in rows(store, f"SELECT {column} FROM edgewright_{table}"))
        for column, table in (("entry_id", "feedback"), ("prediction_id", "predictions"))
    } | {
        "content": sorted(bytes(r[0]) for r in rows(store, "SELECT content FROM edgewright_images"))
    }


@pytest.fixture
def filled(store_url: str) -> str:
    with FeedbackStore.open(store_url) as store:
        store.add_predictions(
            [
                prediction("old", 40, b"of the old one"),
                prediction("old, shared", 40, b"shared"),
                prediction("new, shared", 2, b"shared"),
                prediction("old, spoken of lately", 40, b"spoken of"),
                prediction("old, text", 40),
                prediction("new", 2),
            ]
        )
        store.add_feedback(
            [
                entry("e1", "old", 39),
                entry("e2", "old, spoken of lately", 39),
                entry("e3", "old, spoken of lately", 1),
                entry("e4", "new", 1),
                entry("e5", "unknown", 31),
            ]
        )
    return store_url


@pytest.mark.parametrize("at_once", [1, 500])
def test_what_is_old_goes(
    feedback: Feedback, filled: str, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(feedback_prune, "ROWS_AT_ONCE", at_once)
    monkeypatch.setattr(feedback_prune, "ROWS_READ_AT_ONCE", at_once + 1)
    said = feedback("prune", filled, "--older-than", 30, "--json")
    assert (said.code, said.json["entries"]) == (0, 3)
    assert (said.json["predictions"], said.json["images"]) == (3, 1)
    with FeedbackStore.open(filled) as store:
        assert held(store) == {
            "entry_id": ["e3", "e4"],
            "prediction_id": ["new", "new, shared", "old, spoken of lately"],
            "content": [b"shared", b"spoken of"],
        }
    assert "0 entries, 0 predictions, 0 images" in feedback("prune", filled, "--older-than", 30).out


def test_an_image_that_comes_again_meanwhile_stays(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = feedback_prune._delete_images
    threads: list[threading.Thread] = []

    with FeedbackStore.open(filled) as store, FeedbackStore.open(filled) as server:

        def interrupted(*arguments: Any) -> int:
            count = plain(*arguments)
            if not threads:
                again = [prediction("again", 0, b"of the old one")]
                threads.append(threading.Thread(target=server.add_predictions, args=(again,)))
                threads[0].start()
                threads[0].join(1)  # it waits for the lock; else it sees an image about to go
            return count

        monkeypatch.setattr(feedback_prune, "_delete_images", interrupted)
        prune(store, MONTH_AGO)
        threads[0].join()
        assert "again" in held(store)["prediction_id"]
        assert b"of the old one" in held(store)["content"]


def test_feedback_that_is_being_stored_keeps_its_prediction(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = feedback_store._present

    with FeedbackStore.open(filled) as store, FeedbackStore.open(filled) as server:
        pruning = threading.Thread(target=prune, args=(store, MONTH_AGO))

        def interrupted(*arguments: Any) -> set[str]:
            found = plain(*arguments)
            if not pruning.ident:  # the entry is inserted by now, and not committed
                pruning.start()
                pruning.join(1)  # it waits for the lock; else it sees a prediction without feedback
            return found

        monkeypatch.setattr(feedback_store, "_present", interrupted)
        assert server.add_feedback([entry("e9", "old, text", 0)]) == [Outcome.STORED]
        pruning.join()
        assert "old, text" in held(store)["prediction_id"]


def test_between_its_transactions_others_write_and_what_they_say_counts(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback_prune, "ROWS_AT_ONCE", 1)
    outcomes = []
    with FeedbackStore.open(filled) as store, FeedbackStore.open(filled) as server:

        def pause(_seconds: float) -> None:
            if not outcomes and "old" not in held(server)["prediction_id"]:  # the first is deleted
                outcomes.extend(server.add_feedback([entry("e9", "old, text", 0)]))

        done = prune(store, MONTH_AGO, sleep=pause)
        assert outcomes == [Outcome.STORED]
        assert "old, text" in held(store)["prediction_id"]
        assert (done.predictions, done.images) == (2, 1)


def on_statements(store: FeedbackStore, told: Callable[[str, Any], None]) -> None:
    @event.listens_for(store.engine, "before_cursor_execute")
    def hear(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        told(statement, parameters)


def test_it_pauses_for_as_long_as_it_held_the_lock(filled: str) -> None:
    seconds = 0.0
    pauses: list[float] = []

    def take_time(statement: str, _: object) -> None:
        nonlocal seconds
        waits = statement in feedback_prune._LOCK.values()
        seconds += 100 if waits else statement.startswith("DELETE")

    with FeedbackStore.open(filled) as store:
        on_statements(store, take_time)
        prune(store, MONTH_AGO, clock=lambda: seconds, sleep=pauses.append)
    # Entries, no more entries, predictions and their images.
    assert pauses == [1, 1, 2]


def test_a_transaction_deletes_so_many_bytes_of_images(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback_prune, "IMAGE_BYTES_AT_ONCE", 20)
    pauses: list[float] = []
    with FeedbackStore.open(store_url) as store:
        images = [b"a" * 10, b"b" * 10, None, b"c" * 30, b"d" * 10]
        store.add_predictions([prediction(f"p{i}", 40, image) for i, image in enumerate(images)])
        done = prune(store, MONTH_AGO, sleep=pauses.append)
    assert done == Pruned(0, 5, 4)
    assert len(pauses) == 1 + 3  # a, b and None; c; d


@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)  # the other plans by statistics
def test_no_statement_searches_the_whole_table(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback_prune, "ROWS_READ_AT_ONCE", 2)
    said: list[tuple[str, Any]] = []
    with FeedbackStore.open(filled) as store:
        on_statements(store, lambda *each: said.append(each))
        prune(store, MONTH_AGO)

        def plan(connection: Connection) -> list[str]:
            return [
                step[3]
                for statement, parameters in list(said)
                if statement.startswith(("SELECT", "DELETE"))
                for step in connection.exec_driver_sql(
                    f"EXPLAIN QUERY PLAN {statement}", parameters
                )
            ]

        steps = store.transaction(plan)
    assert any(step.startswith("SEARCH edgewright_predictions") for step in steps)
    assert not [step for step in steps if step.startswith("SCAN edgewright_")]


def test_what_is_done_again_is_counted_once(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FeedbackStore._once
    attempts = count()

    def once(self: FeedbackStore, work: Callable[[Connection], Any]) -> Any:
        def dies_first(connection: Connection) -> Any:
            done = work(connection)
            if next(attempts) % 2 == 0:
                raise DBAPIError("COMMIT", None, OSError("gone"), connection_invalidated=True)
            return done

        return plain(self, dies_first)

    with FeedbackStore.open(filled) as store:
        monkeypatch.setattr(FeedbackStore, "_once", once)
        assert prune(store, MONTH_AGO) == Pruned(3, 3, 1)


def test_a_store_without_images_is_pruned_too(feedback: Feedback, store_url: str) -> None:
    write_old_store(store_url)
    said = feedback("prune", store_url, "--older-than", 1, "--json").json
    assert (said["entries"], said["predictions"], said["images"]) == (1, 1, 0)


@pytest.mark.parametrize("days", ["0", "-3", "x", "1000000000"])
def test_days_are_a_number_from_one(feedback: Feedback, filled: str, days: str) -> None:
    said = feedback("prune", filled, "--older-than", days)
    assert (said.code, "--older-than" in said.err) == (2, True)
    with FeedbackStore.open(filled) as store:
        assert len(held(store)["entry_id"]) == 5
