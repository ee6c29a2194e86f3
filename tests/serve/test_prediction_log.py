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


Dropped = list[tuple[int, int]]  # predictions, and images of others


def log(inputs: LogInputs, dropped: Dropped | None = None, **options: int) -> PredictionLog:
    told: Dropped = [] if dropped is None else dropped
    return PredictionLog(
        inputs,
        lambda rows, images: told.append((rows, images)),
        clock_ns=lambda: 5_000_000,
        **options,
    )


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
    dropped: Dropped = []
    into = log(LogInputs.ALL, dropped, limit_bytes=100_000)
    add(into, b"x" * 1000, b"x" * 100_000, b"x" * 98_000)
    assert [len(row.image or b"") for row in into.first(9)] == [0, 0, 98_000]
    assert dropped == [(0, 1)]


def test_images_are_dropped_before_predictions_oldest_first() -> None:
    dropped: Dropped = []
    into = log(LogInputs.ALL, dropped, limit_bytes=100_000)
    add(into, "a text", *[b"x" * 20_000] * 4)
    add(into, *[b"y" * 20_000] * 3, first=5)
    rows = into.first(9)
    assert [len(row.image or b"") for row in rows] == [0, 0, 0, 0, *[20_000] * 4]
    assert [row.prediction_id for row in rows] == [f"id-{i}" for i in range(8)]
    assert (rows[0].text, dropped) == ("a text", [(0, 3)])
    add(into, *["z" * 1000] * 80, first=8)  # which alone are too much
    assert all(row.image is None for row in into.first(99))
    assert dropped[1] == (88 - len(into), 4)
    assert sum(row.size for row in into.first(99)) <= 100_000


def test_an_image_that_is_dropped_while_it_is_written_is_forgotten_whole() -> None:
    dropped: Dropped = []
    into = log(LogInputs.ALL, dropped, limit_bytes=100_000)
    add(into, b"x" * 60_000)
    written = into.first(1)
    add(into, b"y" * 60_000, first=1)
    into.remove(written)
    add(into, b"z" * 60_000, first=2)  # there is room for one of the two, not for both
    assert [len(row.image or b"") for row in into.first(9)] == [0, 60_000]
    assert dropped == [(0, 1), (0, 1)]
    into.remove(into.first(9))
    add(into, b"x" * 98_000, first=3)
    add(into, b"y" * 98_000, first=4)
    assert [len(row.image or b"") for row in into.first(9)] == [0, 98_000]


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
    dropped: Dropped = []
    into = log(LogInputs.ALL, dropped, limit_bytes=100_000)
    for start in range(0, 300, 10):
        add(into, *["x" * 1000] * 10, first=start)
    kept = into.first(1000)
    assert 50 < len(kept) < 70
    assert len(kept) + sum(rows for rows, _ in dropped) == 300
    assert [row.prediction_id for row in kept] == [f"id-{i}" for i in range(300 - len(kept), 300)]
    assert sum(row.size for row in kept) <= 100_000


def test_what_is_stored_leaves_room() -> None:
    dropped: Dropped = []
    into = log(LogInputs.OFF, dropped, limit_bytes=100_000)
    for start in range(0, 1000, 100):
        ids = add(into, *["x"] * 100, first=start)
        assert into.holds(ids[-1])
        into.remove(into.first(100))
        assert not into.holds(ids[-1])
    assert (len(into), dropped) == (0, [])
    into.remove([])
    assert not into.holds(None)
