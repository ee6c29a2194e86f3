"""``edgewright finetune`` on images: folders, Hugging Face models, a user's own module."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from image_data import digit_folder, digit_image, digits
from PIL import Image

from edgewright.checkpoint import Checkpoint
from edgewright.errors import ConfigError
from edgewright.examples import image_id
from edgewright.factories import FACTORY_FILE, Factory, FactoryClassifier, state_sha256
from edgewright.finetune.augment import Augmentation
from edgewright.finetune.batches import micro_batches, training_steps
from edgewright.preprocess.images import ImagePreprocessor, ImageSettings

PLAIN = ImagePreprocessor(ImageSettings((16, 12), ()))
SMALL = ["--image-size", 16, "--image-crop", 1]


def test_a_folder_of_digits_becomes_a_checkpoint(finetune_images, tmp_path) -> None:
    run = finetune_images("--json", "--freeze", 2, "--augment", "crop")
    assert run.code == 0, run.err
    summary = run.json
    assert (summary["task"], summary["frozen"], summary["blocks"]) == ("image-classification", 2, 4)
    assert (summary["max_length"], summary["truncated"]) == (None, 0)
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.artifact.manifest["task"] == "image-classification"
    assert "pillow" in checkpoint.artifact.manifest["packages"]
    assert checkpoint.preprocessor().input_shape == (-1, 3, 32, 32)
    assert len(checkpoint.examples()) == 150


def test_the_same_run_gives_the_same_manifest(finetune_images, tmp_path) -> None:
    for out in ("one", "two"):
        assert finetune_images("--augment", "light", "--quiet", out=out).code == 0
    one, two = ((tmp_path / out / "manifest.json").read_bytes() for out in ("one", "two"))
    assert one == two


def test_the_report_shows_pictures_of_test_and_validation_alone(finetune_images, tmp_path) -> None:
    assert finetune_images("--quiet").code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "truncated" not in page
    examples = Checkpoint.open(tmp_path / "out").examples()
    shown = {
        split: [image.name for image in examples.split(split).images if image.name in page]
        for split in ("certify", "search", "calibrate", "validation", "test")
    }
    assert not shown["certify"] + shown["search"] + shown["calibrate"]
    assert shown["validation"] + shown["test"]


def test_it_goes_on_from_a_checkpoint_with_new_classes(
    finetune_images, digits_folder, tmp_path
) -> None:
    first = digit_folder(tmp_path / "first", [r for r in range(150) if r % 10 < 3])
    assert finetune_images("--quiet", data=first).code == 0
    more = ["--from", tmp_path / "out", "--add", digits_folder, "--new-labels", "--json"]
    run = finetune_images(*more, data=None, model=None, out="more")
    assert run.code == 0, run.err
    assert sum(run.json["rows_added"].values()) == 150 - 45
    assert len(Checkpoint.open(tmp_path / "more").labels) == 10


def exported(folder: Path, rows: Sequence[int], labels: Sequence[str]) -> Path:
    """Pictures of digits as ``edgewright feedback export`` writes them."""
    (folder / "images").mkdir(parents=True)
    names = [f"images/{row}.png" for row in rows]
    for row, name in zip(rows, names, strict=True):
        digit_image(row).save(folder / name)
    columns = {"file_name": names, "label": list(labels)}
    pq.write_table(pa.table(columns), folder / "metadata.parquet")
    return folder


def test_what_was_fed_back_is_added_once_and_moves_no_old_row(finetune_images, tmp_path) -> None:
    assert finetune_images("--quiet").code == 0
    rows = [*range(140, 180), 170, 171]  # ten that it has learnt from, two that disagree
    labels = [str(digits()[1][row]) for row in rows[:-2]] + ["0", "0"]
    folder = exported(tmp_path / "feedback", rows, labels)
    (folder / "images" / "178.png").write_bytes(b"\x89PNG")
    (folder / "images" / "179.png").write_bytes((folder / "images" / "177.png").read_bytes()[:90])
    went_on = ("--from", tmp_path / "out", "--add", folder)
    run = finetune_images(*went_on, data=None, model=None, out="next")
    assert run.code == 0, run.err
    old, new = (Checkpoint.open(tmp_path / name).examples() for name in ("out", "next"))
    before = dict(zip(old.ids, old.splits, strict=True))
    after = dict(zip(new.ids, new.splits, strict=True))
    assert before.items() <= after.items()
    files = {row: (folder / "images" / f"{row}.png").read_bytes() for row in range(140, 178)}
    ids = {row: image_id(data) for row, data in files.items()}
    assert after.keys() - before.keys() == {ids[row] for row in range(150, 178)}
    assert {after[ids[170]], after[ids[171]]} == {"quarantine"}
    by_id = {key: image.read() for key, image in zip(new.ids, new.images, strict=True)}
    assert [by_id[ids[row]] for row in files] == list(files.values())
    assert "left out 2 images that cannot be decoded" in run.err
    assert "row 39: images/178.png" in run.err


def test_feedback_of_which_no_image_can_be_decoded_is_refused(finetune_images, tmp_path) -> None:
    assert finetune_images("--quiet").code == 0
    folder = exported(tmp_path / "feedback", [160], ["0"])
    (folder / "images" / "160.png").write_bytes(b"GIF89a")
    went_on = ("--from", tmp_path / "out", "--add", folder)
    run = finetune_images(*went_on, data=None, model=None, out="next")
    assert run.code == 2
    assert "none of 1 images can be decoded" in run.err
    assert not (tmp_path / "next").exists()


@pytest.mark.usefixtures("users_code")
def test_a_users_module_is_trained_kept_and_loaded_anew(finetune_images, tmp_path) -> None:
    run = finetune_images("--json", "--freeze", 1, *SMALL, model="users_code:net")
    assert run.code == 0, run.err
    assert (run.json["frozen"], run.json["blocks"]) == (1, 2)
    folder = Checkpoint.open(tmp_path / "out").model_folder
    assert sorted(each.name for each in folder.iterdir()) == [FACTORY_FILE, "model.safetensors"]
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from edgewright.factories import FactoryClassifier, state_sha256\n"
        "print(state_sha256(FactoryClassifier.load(Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == state_sha256(FactoryClassifier.load(folder))
    again = ["--from", tmp_path / "out", "--json", "--freeze", 1]
    run = finetune_images(*again, data=None, model=None, out="again")
    assert run.code == 0, run.err


@pytest.mark.usefixtures("users_code")
def test_the_head_of_a_users_module_grows(tmp_path) -> None:
    model = FactoryClassifier.make(Factory("users_code", "net"), ["a", "b"], seed=0)
    model.save_pretrained(tmp_path)
    grown = FactoryClassifier.load(tmp_path, ["a", "b", "c"])
    assert torch.equal(grown.module.head.weight[:2], model.module.head.weight)
    assert torch.equal(grown.module.stem[0].weight, model.module.stem[0].weight)
    with pytest.raises(ConfigError, match="makes another model than the one that was saved"):
        FactoryClassifier.load(tmp_path, ["a"])


@pytest.mark.usefixtures("users_code")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nothing_here:net", "cannot import nothing_here .*PYTHONPATH"),
        ("users_code:gone", "users_code has no gone"),
        ("users_code:plain", "plain is no function or class that users_code defines"),
        ("users_code:nn", "nn is no function or class that users_code defines"),
        ("os:system", "os is Python's own"),
        ("shutil:rmtree", "shutil is Python's own"),
        ("users_code:broken", r"broken\(10\) failed: OSError: the weights are not there"),
        ("users_code:no_module", r"no_module\(10\) gave a int; it must"),
        ("users_code:two_logits", r"logits of shape \(1, 2\) for one picture and 10 classes"),
        ("users_code:text_only", "fails on a picture of shape 1x3x16x16: .*Error"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused(finetune_images, model, message) -> None:
    run = finetune_images(*SMALL, model=model)
    assert run.code == 2
    import re

    assert re.search(message, run.err), run.err


@pytest.mark.usefixtures("users_code")
def test_misfits_of_options_are_refused(
    finetune_images, vision_folder, model_folder, data_file
) -> None:
    def refusal(*options, **changes) -> str:
        run = finetune_images(*options, **changes)
        assert run.code == 2, run.err
        return run.err

    assert "--model is missing: for images give" in refusal(model=None)
    assert "--image-size is missing" in refusal(model="users_code:net")
    assert "--image-size, --blocks describe the model of a factory" in refusal(
        "--image-size", 32, "--blocks", "a"
    )
    assert "--max-length does not go with images" in refusal("--max-length", 8)
    assert "the examples are images, which bert does not classify" in refusal(model=model_folder)
    assert "the examples are texts, which resnet does not classify" in refusal(data=data_file)
    assert "--augment does not go with texts" in refusal(
        "--augment", "flip", data=data_file, model=model_folder
    )
    assert "a factory's model reads images, and the examples are texts" in refusal(
        data=data_file, model="users_code:net"
    )
    assert "--batch-size 1: this model normalises over its batch" in refusal("--batch-size", 1)
    told = refusal("--image-size", "0", "--image-mean", "1,2", "--image-std", "0", model="a:b")
    assert all(f"--image-{each} is" in told for each in ("size", "mean", "std"))


def test_a_file_that_is_no_image_is_named(finetune_images, tmp_path) -> None:
    data = digit_folder(tmp_path / "d", range(60))
    (data / "3" / "bad.png").write_bytes(b"no picture")
    run = finetune_images(data=data)
    assert run.code == 2
    assert "3/bad.png is no image that is read here" in run.err


def test_augmentation_depends_on_seed_view_and_picture_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)

    def seen(name: str, seed: int = 0, view: int = 1, picture_id: str = "0a") -> bytes:
        changes = Augmentation(name, seed)
        shown = changes.pixels(PLAIN, picture, "it", view=view, image_id=picture_id)
        assert shown.shape == (16, 12, 3)
        return shown.tobytes()

    for name in ("crop", "light"):
        assert seen(name) == seen(name)
        others = {seen(name), seen(name, seed=1), seen(name, view=2), seen(name, picture_id="0b")}
        assert len(others) == 4
    plain = PLAIN.pixels(picture, "it")
    flips = [seen("flip", picture_id=f"{row:x}") for row in range(200)]
    assert set(flips) == {plain.tobytes(), plain[:, ::-1].tobytes()}
    assert 70 < flips.count(plain.tobytes()) < 130


def test_no_row_trains_alone_where_rows_normalise_each_other() -> None:
    for rows in (3, 16, 17, 33, 257, 258):
        steps = training_steps(np.ones(rows), 16, seed=0, epoch=1, least=2)
        assert sorted(np.concatenate(steps).tolist()) == list(range(rows))
        assert min(map(len, steps)) >= 2
        assert max(map(len, steps)) <= 17
        assert min(len(b) for step in steps for b in micro_batches(step, 4, 2)) >= 2


def test_the_checkpoint_says_what_made_it(finetune_images, tmp_path) -> None:
    assert finetune_images("--quiet", "--augment", "flip").code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"]["augment"] == "flip"
    assert "max-length" not in manifest["config"]
