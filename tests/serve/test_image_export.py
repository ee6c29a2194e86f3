"""``edgewright feedback export`` of images: a folder that finetune reads, whole or not at all."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sqlalchemy import text as sql

from edgewright.serve.feedback_export import export
from edgewright.serve.feedback_records import Prediction
from edgewright.serve.feedback_rows import Selection
from edgewright.serve.feedback_store import FeedbackStore
from edgewright.tables import IMAGE_TABLE, read_table

from .databases import small_file_system
from .image_bundles import png
from .test_feedback_cli import JANUARY_US, Feedback, Said, entry
from .test_feedback_cli import feedback as feedback
from .test_feedback_cli import prediction as text_prediction

LABELS = ("Füchse 狐", "🐕 dog")
RED, GREEN = png((200, 0, 0)), png((0, 200, 0))


def saved(colour: tuple[int, int, int], form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), colour).save(file, form)
    return file.getvalue()


JPEG, WEBP = saved((0, 0, 200), "JPEG"), saved((9, 9, 9), "WEBP")


def prediction(prediction_id: str, image: bytes | None, model: str = "pets") -> Prediction:
    return Prediction(prediction_id, model, 1, LABELS, [0, 1], [0.7, 0.3], None, JANUARY_US, image)


def told(entry_id: str, prediction_id: str, label: str, day: int = 1) -> Any:
    return entry(entry_id, prediction_id, label, day, model="pets")


def name_of(data: bytes, ending: str = ".png") -> str:
    return f"images/{sha256(data).hexdigest()}{ending}"


@pytest.fixture
def filled(store_url: str) -> str:
    """Images of three formats, one of them twice and with two labels, and one that is not logged."""
    with FeedbackStore.open(store_url) as store:
        store.add_predictions(
            [
                prediction("p1", RED),
                prediction("p2", RED),
                prediction("p3", JPEG),
                prediction("p4", WEBP),
                prediction("p5", None),
                prediction("p6", GREEN),  # which nobody spoke of
            ]
        )
        store.add_feedback(
            [
                told("e1", "p1", LABELS[0], 1),
                told("e2", "p2", LABELS[1], 2),
                told("e3", "p3", LABELS[0], 3),
                told("e4", "p3", LABELS[1], 4),
                told("e5", "p4", LABELS[1], 5),
                told("e6", "p5", LABELS[0], 6),
                told("e7", "unknown", LABELS[0], 7),
                entry("e8", None, LABELS[0], 8, model="pets", text="a fox on a meadow"),
            ]
        )
    return store_url


def test_every_image_is_there_once_and_the_table_names_it(
    feedback: Feedback, filled: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    said = feedback("export", filled, "-o", folder, "--json")
    assert (said.code, said.err) == (0, "")
    assert said.json == {
        "folder": str(folder), "entries": 8, "exported": 4, "without_input": 3, "superseded": 1,
        "images": 3, "damaged": 0, "labels": {LABELS[0]: 1, LABELS[1]: 3},
    }  # fmt: skip
    rows = pq.read_table(folder / IMAGE_TABLE).to_pylist()
    assert [(row["entry_id"], row["file_name"], row["label"]) for row in rows] == [
        ("e1", name_of(RED), LABELS[0]),
        ("e2", name_of(RED), LABELS[1]),
        ("e4", name_of(JPEG, ".jpg"), LABELS[1]),
        ("e5", name_of(WEBP, ".webp"), LABELS[1]),
    ]
    assert list(rows[0]) == [
        "file_name", "label", "prediction_id", "model", "version", "entry_id", "time",
    ]  # fmt: skip
    files = {f"images/{each.name}": each.read_bytes() for each in (folder / "images").iterdir()}
    assert files == {
        name_of(RED): RED, name_of(JPEG, ".jpg"): JPEG, name_of(WEBP, ".webp"): WEBP,
    }  # fmt: skip


def test_finetune_and_hugging_face_read_the_folder_without_being_told_its_columns(
    feedback: Feedback, filled: str, tmp_path: Path
) -> None:
    assert feedback("export", filled, "-o", tmp_path / "out").code == 0
    table = read_table(tmp_path / "out")
    assert list(table.labels) == [LABELS[0], LABELS[1], LABELS[1], LABELS[1]]
    read = [each.read() for each in table.contents if not isinstance(each, str)]
    assert read == [RED, RED, JPEG, WEBP]
    cache = str(tmp_path / "cache")
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=cache)
    assert theirs["train"]["label"][:] == list(table.labels)
    assert theirs["train"][2]["image"].size == (9, 7)


@pytest.mark.parametrize("name", ["x.parquet", "x.CSV"])
def test_a_file_is_no_place_for_images(
    feedback: Feedback, filled: str, tmp_path: Path, name: str
) -> None:
    said = feedback("export", filled, "-o", tmp_path / name)
    assert said.code == 2
    assert f"give a folder: -o {tmp_path / 'x'}" in said.err
    assert not list(tmp_path.glob("*x*"))


def test_a_damaged_image_is_counted_and_left_out(
    feedback: Feedback, filled: str, tmp_path: Path
) -> None:
    noise = b"not what it was"
    with FeedbackStore.open(filled) as store:
        store.add_predictions([prediction("p9", noise)])  # of its hash, but no image
        store.add_feedback([told("e9", "p9", LABELS[0])])
        for query, data in (
            ("UPDATE edgewright_images SET content = :data WHERE sha256 = :key", JPEG),
            ("DELETE FROM edgewright_images WHERE sha256 = :key", WEBP),
        ):
            values = {"key": sha256(data).hexdigest(), "data": JPEG[:-1]}
            store.transaction(lambda c, q=query, v=values: c.execute(sql(q), v))  # type: ignore[misc]
    said = feedback("export", filled, "-o", tmp_path / "out", "--json").json
    assert (said["exported"], said["damaged"], said["images"]) == (2, 3, 1)
    assert "damaged         3 rows" in feedback("export", filled, "-o", tmp_path / "again").out


def test_the_report_counts_images_as_input(feedback: Feedback, filled: str) -> None:
    figures = feedback("report", filled, "--json").json
    assert (figures["predictions"], figures["predictions_with_input"]) == (6, 5)
    assert (figures["entries"], figures["without_input"]) == (8, 2)  # the text of e8 is one


@pytest.mark.parametrize("logged", [False, True])
def test_a_store_without_images_has_nothing_to_export(
    feedback: Feedback, store_url: str, tmp_path: Path, logged: bool
) -> None:
    with FeedbackStore.open(store_url) as store:
        if logged:
            store.add_predictions([prediction("p1", None)])
            store.add_feedback([told("e1", "p1", LABELS[0])])
    (tmp_path / "there").mkdir()
    for place in ("out", "there"):
        said = feedback("export", store_url, "-o", tmp_path / place)
        assert said.code == 2
        assert ("of 1 entries in the store none can be exported" in said.err) is logged
        assert ("--log-inputs all" in said.err) is logged
        assert ("holds no feedback yet; callers send it with" in said.err) is not logged
    assert {each.name for each in tmp_path.iterdir()} <= {"feedback.db", "there"}


def test_models_of_both_kinds_are_exported_one_by_one(
    feedback: Feedback, filled: str, tmp_path: Path
) -> None:
    with FeedbackStore.open(filled) as store:
        store.add_predictions([text_prediction("q1", "sport", "United won")])
        store.add_feedback([entry("f1", "q1", "sport", 1)])
    said = feedback("export", filled, "-o", tmp_path / "out")
    assert (said.code, "several models (news, pets)" in said.err) == (2, True)
    assert feedback("export", filled, "-o", tmp_path / "out", "--model", "pets").code == 0
    assert feedback("export", filled, "-o", tmp_path / "o.parquet", "--model", "news").code == 0
    assert pq.read_table(tmp_path / "out" / IMAGE_TABLE).num_rows == 4
    assert pq.read_table(tmp_path / "o.parquet")["text"].to_pylist() == ["United won"]


def test_only_an_export_is_replaced(feedback: Feedback, filled: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert feedback("export", filled, "-o", folder, "--since", "2026-01-05").code == 0
    assert feedback("export", filled, "-o", folder).code == 2
    assert feedback("export", filled, "-o", folder, "--overwrite", "--json").json["exported"] == 4
    assert pq.read_table(folder / IMAGE_TABLE).num_rows == 4
    own = tmp_path / "own"
    own.mkdir()
    (own / "precious.png").write_bytes(RED)
    said = feedback("export", filled, "-o", own, "--overwrite")
    assert (said.code, (own / "precious.png").read_bytes()) == (2, RED)
    assert "will not delete it" in said.err
    assert feedback("export", filled, "-o", tmp_path / "missing" / "out").code == 2


def test_an_export_that_is_killed_leaves_nothing_half(
    feedback: Feedback, filled: str, tmp_path: Path
) -> None:
    script = (
        "import os, signal, sys\n"
        "from edgewright.serve.image_export import ImageExport\n"
        "plain, seen = ImageExport._write, []\n"
        "def dies(self, key):\n"
        "    seen.append(key)\n"
        "    if len(seen) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plain(self, key)\n"
        "ImageExport._write = dies\n"
        "from edgewright.cli import run\n"
        "run(sys.argv[1:])\n"
    )
    place = tmp_path / "new"
    place.mkdir()
    command = [sys.executable, "-c", script, "feedback", "export", filled, "-o", str(place / "out")]
    assert subprocess.run(command, check=False).returncode == -9
    (left,) = place.iterdir()
    assert left.name.startswith(".out.")
    assert len(list((left / "images").iterdir())) == 1
    assert feedback("export", filled, "-o", place / "out").code == 0
    assert [each.name for each in place.iterdir()] == ["out"]


def test_a_full_disk_is_told_and_leaves_nothing(
    feedback: Feedback, filled: str, tmp_path: Path
) -> None:
    noise = Image.effect_noise((600, 600), 100)
    file = io.BytesIO()
    noise.save(file, "PNG")
    with FeedbackStore.open(filled) as store:
        store.add_predictions([prediction("p9", file.getvalue())])
        store.add_feedback([told("e9", "p9", LABELS[0])])
    with small_file_system(tmp_path / "small", "160k") as small:
        said: Said = feedback("export", filled, "-o", small / "out")
        assert said.code == 1
        assert "No space left on device" in said.err
        assert list(small.iterdir()) == []


def test_images_are_not_all_in_memory(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    with FeedbackStore.open(url) as store:
        for index in range(40):  # a comment of a megabyte makes a file large
            picture = png((index, 0, 0)) + bytes(1 << 20)
            store.add_predictions([prediction(f"p{index}", picture)])
            store.add_feedback([told(f"e{index}", f"p{index}", LABELS[0])])
        tracemalloc.start()
        done = export(store, tmp_path / "out", Selection())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert done.images == 40
    assert peak < 10 << 20
