"""``edgewright feedback``: what a store has gathered, as training data and in figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from edgewright.cli import run
from edgewright.serve.feedback_records import Entry, Prediction
from edgewright.serve.feedback_store import FeedbackStore
from edgewright.tables import Columns, read_table

from .databases import PASSWORD

JANUARY_US = 1_767_225_600_000_000  # 2026-01-01
DAY_US = 86_400_000_000


def entry(entry_id: str, prediction_id: str | None, label: str, day: int, **fields: Any) -> Entry:
    given: dict[str, Any] = {"text": None, "note": None, "model": "news", **fields}
    time_us = JANUARY_US + day * DAY_US
    return Entry(entry_id, prediction_id, label, **given, created_us=time_us, received_us=time_us)


def prediction(prediction_id: str, label: str, text: str | None, model: str = "news") -> Prediction:
    labels = ("business", "sport")
    best = labels.index(label)
    return Prediction(
        prediction_id, model, 1, labels, [best, 1 - best], [0.75, 0.25], text, JANUARY_US
    )


@pytest.fixture
def filled(store_url: str) -> str:
    """Five predictions, two of them without text, and feedback of every kind."""
    with FeedbackStore.open(store_url) as store:
        store.add_predictions(
            [
                prediction("p1", "sport", "United won"),
                prediction("p2", "sport", "Shares rose"),
                prediction("p3", "business", None),
                prediction("p4", "sport", "Nobody said anything"),
                prediction("p5", "business", None),
            ]
        )
        store.add_feedback(
            [
                entry("e1", "p1", "business", 1),
                entry("e2", "p1", "sport", 2),  # thinks better of it
                entry("e3", "p2", "business", 3, text="what the caller says it was"),
                entry("e4", "p3", "business", 4),  # without input
                entry("e5", "p5", "sport", 5, text="The caller kept it"),
                entry("e6", "unknown", "sport", 6),  # unmatched, without input
                entry("e7", "unknown too", "sport", 7, text="Unmatched, with input"),
                entry("e8", None, "business", 8, text="A text of its own"),
                entry("e9", None, "sport", 9, text="Another"),
            ]
        )
    return store_url


@dataclass
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def feedback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("EDGEWRIGHT_DEBUG", raising=False)

    def call(*arguments: object) -> Said:
        code = run(["feedback", *map(str, arguments)])
        return Said(code, *capsys.readouterr())

    return call


Feedback = Callable[..., Said]


def test_labels_and_texts_are_joined_and_the_last_entry_counts(
    feedback: Feedback, filled: str, tmp_path: Path
) -> None:
    file = tmp_path / "out.parquet"
    said = feedback("export", filled, "-o", file, "--json")
    assert (said.code, said.err) == (0, "")
    assert said.json == {
        "file": str(file),
        "entries": 9,
        "exported": 6,
        "without_input": 2,
        "superseded": 1,
        "labels": {"business": 2, "sport": 4},
    }
    rows = pq.read_table(file).to_pylist()
    assert [(row["entry_id"], row["text"], row["label"]) for row in rows] == [
        ("e2", "United won", "sport"),
        ("e3", "Shares rose", "business"),  # what was classified goes before what is said of it
        ("e5", "The caller kept it", "sport"),
        ("e7", "Unmatched, with input", "sport"),
        ("e8", "A text of its own", "business"),
        ("e9", "Another", "sport"),
    ]
    assert rows[0] == {
        "text": "United won", "label": "sport", "prediction_id": "p1", "model": "news",
        "version": 1, "entry_id": "e2", "time": datetime(2026, 1, 3, tzinfo=UTC),
    }  # fmt: skip
    assert (rows[4]["prediction_id"], rows[4]["version"]) == (None, None)


def test_the_file_is_one_that_finetune_reads_without_being_told_its_columns(
    feedback: Feedback, filled: str, tmp_path: Path
) -> None:
    feedback("export", filled, "-o", tmp_path / "out.parquet")
    table = read_table(str(tmp_path / "out.parquet"), Columns())
    assert list(table.texts)[:2] == ["United won", "Shares rose"]
    assert list(table.labels)[:2] == ["sport", "business"]


def test_only_what_came_since_is_exported(feedback: Feedback, filled: str, tmp_path: Path) -> None:
    for number, since in enumerate(["2026-01-08", "2026-01-08T01:00:00+01:00"]):
        file = tmp_path / f"{number}.parquet"
        assert (
            feedback("export", filled, "-o", file, "--since", since, "--json").json["entries"] == 3
        )
        assert pq.read_table(file)["entry_id"].to_pylist() == ["e7", "e8", "e9"]
    said = feedback("export", filled, "-o", tmp_path / "x", "--since", "yesterday")
    assert said.code == 2
    assert "ISO 8601" in said.err


def test_an_existing_file_is_kept_unless_told(
    feedback: Feedback, filled: str, tmp_path: Path
) -> None:
    file = tmp_path / "out.parquet"
    file.write_text("precious")
    said = feedback("export", filled, "-o", file)
    assert (said.code, file.read_text()) == (2, "precious")
    assert "pass --overwrite" in said.err
    assert feedback("export", filled, "-o", file, "--overwrite").code == 0
    assert pq.read_table(file).num_rows == 6
    assert [each.name for each in tmp_path.glob("*out.parquet*")] == ["out.parquet"]
    for place in (tmp_path, tmp_path / "missing" / "out.parquet"):
        assert feedback("export", filled, "-o", place, "--overwrite").code == 2


@pytest.mark.parametrize(
    ("name", "fit"),
    [("pets-feedback", "pets-feedback.parquet"), ("x.csv", "x.parquet"), ("v1.2", "v1.2.parquet")],
)
def test_texts_go_to_a_file_that_finetune_knows_by_its_ending(
    feedback: Feedback, filled: str, tmp_path: Path, name: str, fit: str
) -> None:
    said = feedback("export", filled, "-o", tmp_path / name)
    assert said.code == 2
    assert f"give one: -o {tmp_path / fit}" in said.err
    assert not list(tmp_path.glob(f"*{name}*"))
    assert feedback("export", filled, "-o", tmp_path / fit).code == 0
    assert feedback("export", filled, "-o", tmp_path / "X.PARQUET").code == 0
    assert len(read_table(tmp_path / "X.PARQUET")) == len(read_table(tmp_path / fit)) == 6


def test_nothing_to_export_is_an_error_and_leaves_no_file(
    feedback: Feedback, store_url: str, tmp_path: Path
) -> None:
    with FeedbackStore.open(store_url) as store:
        store.add_feedback([entry("e1", "p", "sport", 1)])
    said = feedback("export", store_url, "-o", tmp_path / "out.parquet")
    assert said.code == 2
    assert "1 are without input" in said.err
    assert "--log-inputs all" in said.err
    assert not list(tmp_path.glob("*out.parquet*"))


@pytest.mark.parametrize("option", [("--model", "blog"), ("--since", "2099-01-31")])
def test_a_selection_of_nothing_is_told_from_a_store_without_inputs(
    feedback: Feedback, filled: str, tmp_path: Path, option: tuple[str, str]
) -> None:
    said = feedback("export", filled, "-o", tmp_path / "out.parquet", *option)
    assert said.code == 2
    assert "no feedback that --model and --since select; `edgewright feedback report" in said.err
    assert "--log-inputs" not in said.err


def test_feedback_on_two_models_is_not_mixed(
    feedback: Feedback, filled: str, tmp_path: Path
) -> None:
    with FeedbackStore.open(filled) as store:
        store.add_predictions([prediction("q1", "sport", "A blog", model="blog")])
        store.add_feedback([entry("f1", "q1", "sport", 1, model=None)])
    file = tmp_path / "out.parquet"
    said = feedback("export", filled, "-o", file)
    assert said.code == 2
    assert "several models (blog, news)" in said.err
    assert feedback("export", filled, "-o", file, "--model", "blog", "--json").json["exported"] == 1
    assert pq.read_table(file)["entry_id"].to_pylist() == ["f1"]


def test_the_report_counts_everything(feedback: Feedback, filled: str) -> None:
    said = feedback("report", filled, "--json")
    figures = said.json
    assert PASSWORD not in figures.pop("store")
    assert figures == {
        "predictions": 5,
        "predictions_with_input": 3,
        "entries": 9,
        "superseded": 1,
        "unmatched": 2,
        "without_input": 2,
        "matched": 4,
        "agreeing": 2,  # p1 and p3; p2 and p5 were wrong
        "agreement": 0.5,
        "labels": {"business": 3, "sport": 5},
        "models": {"news version 1": {"matched": 4, "agreeing": 2, "agreement": 0.5}},
    }
    told = feedback("report", filled)
    assert "right in 2 of 4: 0.5000" in told.out


def test_an_empty_store_has_a_report(feedback: Feedback, store_url: str) -> None:
    FeedbackStore.open(store_url).close()
    figures = feedback("report", store_url, "--json").json
    assert (figures["entries"], figures["agreement"], figures["models"]) == (0, None, {})


def test_what_is_no_store_is_refused(feedback: Feedback, tmp_path: Path) -> None:
    for command in (
        ("report",),
        ("export", "-o", str(tmp_path / "out.parquet")),
        ("prune", "--older-than", "1"),
    ):
        said = feedback(command[0], f"sqlite:///{tmp_path / 'typo.db'}", *command[1:])
        assert said.code == 2
        assert "no such file" in said.err
    assert feedback("report", "typo.db").code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_store_may_come_from_the_environment(
    feedback: Feedback, filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWRIGHT_FEEDBACK", filled)
    assert feedback("report", "--json").json["entries"] == 9


def test_reading_does_not_wait_for_a_writer(
    feedback: Feedback, filled: str, tmp_path: Path
) -> None:
    with FeedbackStore.open(filled) as store, store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM edgewright_feedback")
        assert feedback("report", filled, "--json").json["entries"] == 9
        connection.rollback()
