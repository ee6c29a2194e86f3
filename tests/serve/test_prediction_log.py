"""Predictions on their way into the store: bounded, and with input only where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from edgewright.serve.call import Answer
from edgewright.serve.feedback_records import Prediction
from edgewright.serve.prediction_log import LogInputs, PredictionLog


@dataclass(frozen=True)
class Model:
    name: str = "news"
    version: int = 3
    labels: tuple[str, ...] = ("business", "sport")


def log(inputs: LogInputs, dropped: list[int] | None = None, **options: int) -> PredictionLog:
    counts = [] if dropped is None else dropped
    return PredictionLog(inputs, counts.append, clock_ns=lambda: 5_000_000, **options)


def add(into: PredictionLog, *texts: str | bytes | None, first: int = 0) -> list[str]:
    ids = [f"id-{first + index}" for index in range(len(texts))]
    into.add(Model(), ids, texts, [Answer([1, 0], [0.75, 0.25], False)] * len(texts))
    return ids


def test_a_prediction_is_told_whole() -> None:
    into = log(LogInputs.ALL)
    add(into, "United won")
    assert into.first(10) == [
        Prediction(
            "id-0", "news", 3, ("business", "sport"), [1, 0], [0.75, 0.25], "United won", 5000
        )
    ]


@pytest.mark.parametrize(
    ("inputs", "least", "most"),
    [(LogInputs.OFF, 0, 0), (LogInputs.SAMPLED, 60, 140), (LogInputs.ALL, 1000, 1000)],
)
def test_texts_are_kept_as_told(inputs: LogInputs, least: int, most: int) -> None:
    into = log(inputs)
    add(into, *["some text"] * 1000)
    rows = into.first(2000)
    assert len(rows) == 1000
    assert least <= sum(row.text == "some text" for row in rows) <= most


@pytest.mark.parametrize(
    ("inputs", "least", "most"),
    [(LogInputs.OFF, 0, 0), (LogInputs.SAMPLED, 60, 140), (LogInputs.ALL, 1000, 1000)],
)
def test_images_are_kept_as_told(inputs: LogInputs, least: int, most: int) -> None:
    into = log(inputs)
    add(into, *[b"\0 a picture"] * 1000)
    rows = into.first(2000)
    assert {row.text for row in rows} == {None}
    assert least <= sum(row.image == b"\0 a picture" for row in rows) <= most


def test_what_came_as_tensors_is_logged_without_input() -> None:
    into = log(LogInputs.ALL)
    add(into, None)
    assert [(row.text, row.image) for row in into.first(1)] == [(None, None)]


def test_an_image_that_is_larger_than_the_memory_is_left_out_and_pushes_out_nobody() -> None:
    dropped: list[int] = []
    into = log(LogInputs.ALL, dropped, limit_bytes=100_000)
    add(into, b"x" * 1000, b"x" * 100_000, b"x" * 98_000)
    assert [len(row.image or b"") for row in into.first(9)] == [0, 98_000]
    assert dropped == [1]


def test_what_is_written_at_once_is_bounded_by_its_bytes() -> None:
    into = log(LogInputs.ALL)
    add(into, *[b"x" * 10_000] * 10)
    assert len(into.first(100, 35_000)) == 3
    assert len(into.first(2, 35_000)) == 2
    assert len(into.first(100, 5)) == 1
    assert log(LogInputs.ALL).first(100, 5) == []


def test_what_no_database_can_hold_is_logged_without_its_text() -> None:
    into = log(LogInputs.ALL)
    add(into, "a\0b", "ab")
    assert [row.text for row in into.first(2)] == [None, "ab"]


def test_memory_is_bounded_and_what_is_dropped_is_counted_oldest_first() -> None:
    dropped: list[int] = []
    into = log(LogInputs.ALL, dropped, limit_bytes=100_000)
    for start in range(0, 300, 10):
        add(into, *["x" * 1000] * 10, first=start)
    kept = into.first(1000)
    assert 50 < len(kept) < 70
    assert len(kept) + sum(dropped) == 300
    assert [row.prediction_id for row in kept] == [f"id-{i}" for i in range(300 - len(kept), 300)]
    assert sum(row.size for row in kept) <= 100_000


def test_what_is_stored_leaves_room() -> None:
    dropped: list[int] = []
    into = log(LogInputs.OFF, dropped, limit_bytes=100_000)
    for start in range(0, 1000, 100):
        ids = add(into, *["x"] * 100, first=start)
        assert into.holds(ids[-1])
        into.remove(into.first(100))
        assert not into.holds(ids[-1])
    assert (len(into), dropped) == (0, [])
    into.remove([])
    assert not into.holds(None)
