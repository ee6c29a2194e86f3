"""``edgewright feedback prune``: what is old goes, and nothing that somebody still names."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from edgewright.serve import feedback_prune
from edgewright.serve.feedback_records import Entry, Prediction
from edgewright.serve.feedback_store import FeedbackStore

from .old_store import write_old_store
from .test_feedback_cli import Feedback
from .test_feedback_cli import feedback as feedback
from .test_feedback_store import rows

NOW = datetime.now(UTC)


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
        feedback_prune.prune(store, NOW - timedelta(days=30))
        threads[0].join()
        assert "again" in held(store)["prediction_id"]
        assert b"of the old one" in held(store)["content"]


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
