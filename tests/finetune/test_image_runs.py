"""Whole runs on images: depth, cache and views, audit, calibration, forgetting, going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from image_data import digit_folder, digit_image, digits
from PIL import Image
from safetensors.torch import load_file

from edgewright.checkpoint import Checkpoint

FLIPPED = range(0, 200, 17)
TWINS = (201, 203, 205)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, some under a wrong class, some saved twice, some of one colour, one in two classes."""
    folder = digit_folder(tmp_path_factory.mktemp("data") / "spoilt", range(400))
    for row in FLIPPED:
        wrong = folder / str((digits()[1][row] + 5) % 10) / f"{row}.png"
        (folder / str(digits()[1][row]) / f"{row}.png").rename(wrong)
    for row in TWINS:
        digit_image(row).save(folder / str(digits()[1][row]) / f"{row}-again.bmp")
    for number, level in enumerate((0, 40, 255)):
        Image.new("RGB", (8, 8 + number), (level,) * 3).save(folder / "3" / f"blank{number}.png")
    digit_image(1300).save(folder / "9" / "two-classes.png")
    digit_image(1300).save(folder / "1" / "two-classes.png")
    return folder


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_bytes())


def cache_of(folder: Path) -> dict[str, Any]:
    use: dict[str, Any] = read(folder, "measurements.json")["activation_cache"]
    return use


def encoder(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    return {name: each for name, each in weights.items() if name.startswith("resnet.")}


def test_the_audit_finds_twins_flipped_labels_and_blank_images(
    finetune_images, spoilt, tmp_path
) -> None:
    run = finetune_images("--freeze", 4, data=spoilt)
    assert run.code == 0, run.err
    found = read(tmp_path / "out", "audit.json")
    assert found["near_duplicates"]["count"] >= len(TWINS)
    assert found["conflicting_labels"]["count"] == 1
    assert found["conflicting_labels"]["worst"][0]["labels"] == {"1": 1, "9": 1}
    assert found["empty_images"]["count"] == 3
    assert found["lengths"] is None
    errors = found["features"]["label_errors"]
    assert errors["is_skilled"]
    ranked = [Path(each["image"]).stem for each in errors["ranked"]]
    examples = Checkpoint.open(tmp_path / "out").examples()
    seen = {
        image.name
        for split in ("train", "validation", "test")
        for image in examples.split(split).images
    }
    wrong = {str(row) for row in FLIPPED if any(Path(name).stem == str(row) for name in seen)}
    assert len(wrong) > 5
    assert len(wrong.intersection(ranked)) >= 0.8 * len(wrong)
    assert len(ranked) < 4 * len(FLIPPED), "a few, not most rows"
    assert "images in which nothing can be seen: 3" in run.err
    assert "--strict would refuse: blank-image, conflicting-labels" in run.err


def test_the_report_shows_what_was_found_as_thumbnails_and_nothing_hidden(
    finetune_images, spoilt, tmp_path
) -> None:
    assert finetune_images("--freeze", 4, "--quiet", data=spoilt).code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    audit = page[page.index("Data audit") :]
    assert audit.count("data:image/png;base64,") > 12
    for words in ("images of one colour", "two-classes.png", "Likely label errors", "blank-image"):
        assert words in audit, words
    assert "empty-text" not in audit
    examples = Checkpoint.open(tmp_path / "out").examples()
    record = (tmp_path / "out" / "audit.json").read_text()
    for split in ("calibrate", "search", "certify"):
        part = examples.split(split)
        for image, key in zip(part.images, part.ids, strict=True):
            assert key not in record
            assert f'"{image.name}"' not in record
            assert f">{image.name}<" not in page


def test_strict_refuses_images_by_the_same_rules(finetune_images, spoilt) -> None:
    run = finetune_images("--strict", "--audit", "fast", data=spoilt)
    assert run.code == 2
    assert "conflicting-labels: 1 image with more than one label" in run.err
    assert "blank-image: 3 images of one colour" in run.err
    assert "spoilt: 3/blank" in run.err


@pytest.mark.usefixtures("users_code")
def test_a_users_module_is_audited_by_what_its_head_reads(finetune_images, tmp_path) -> None:
    options = ["--image-size", 16, "--image-crop", 1, "--freeze", 1, "--no-head-first", "--json"]
    run = finetune_images(*options, model="users_code:chained")
    assert run.code == 0, run.err
    rows = run.json["rows"]
    judged = read(tmp_path / "out", "audit.json")["features"]["rows"]["judged"]
    assert judged == rows["train"] + rows["validation"] + rows["test"]


def test_the_depth_is_found_in_one_pass_of_the_encoder(finetune_images, tmp_path) -> None:
    run = finetune_images("--freeze", "auto", "--cache", "on", "--json")
    assert run.code == 0, run.err
    choice = read(tmp_path / "out", "metrics.json")["depth"]
    assert [each["blocks"] for each in choice["candidates"]] == [0, 1, 2, 3, 4]
    assert all(each["probe_accuracy"] > 0.2 for each in choice["candidates"][1:])
    assert choice["blocks"] == run.json["frozen"]
    assert read(tmp_path / "out", "manifest.json")["config"]["freeze"] == run.json["frozen"]
    if run.json["frozen"]:
        assert cache_of(tmp_path / "out")["filled"] == 0, "the race has filled it"
    assert "Depth" in (tmp_path / "out" / "report.html").read_text()


def test_depths_compete_only_where_every_one_of_them_could_train(finetune_images) -> None:
    run = finetune_images("--freeze", "auto", "--batch-size", 1)
    assert run.code == 2
    assert "this model normalises over its batch" in run.err


def test_scores_are_calibrated_in_the_weights_that_are_written(
    finetune_images, digits_folder, tmp_path
) -> None:
    options = ["--splits", "40/30/5/5/10/10", "--freeze", 2, "--epochs", 3, "--json"]
    run = finetune_images(*options)
    assert run.code == 0, run.err
    told = read(tmp_path / "out", "metrics.json")["calibration"]
    assert (told["skipped"], told["rows"]) == ("", run.json["rows"]["validation"])
    assert run.json["temperature"] != 1
    assert finetune_images(*options, "--calibrate", "none", out="plain").code == 0
    divided, plain = (
        load_file(Checkpoint.open(tmp_path / out).model_folder / "model.safetensors")
        for out in ("out", "plain")
    )
    for name in ("classifier.1.weight", "classifier.1.bias"):
        expected = plain[name] / run.json["temperature"]
        torch.testing.assert_close(divided[name], expected, rtol=1e-5, atol=1e-6)
    assert "reliability" in (tmp_path / "out" / "report.html").read_text().lower()


def test_forgetting_is_asked_of_nearest_neighbours_and_mixtures_are_plotted(
    finetune_images, tmp_path
) -> None:
    run = finetune_images("--freeze", 1, "--forgetting", "full", "--interpolate", 0.5, "--json")
    assert run.code == 0, run.err
    told = read(tmp_path / "out", "metrics.json")["forgetting"]
    assert told["probe"] == "nearest neighbours"
    assert "images have no words to hide" in told["reason"]
    kept = {each["share"]: each["retained"] for each in told["sweep"]}
    assert len(kept) == 11
    assert kept[0.0] == 1.0 == told["before"]["neighbours_kept"]
    assert kept[1.0] == told["after"]["neighbours_kept"] < 1
    assert told["written"]["neighbours_kept"] == kept[0.5]
    assert "The trade" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("share", [0, 0.5])
def test_the_encoder_written_lies_between_the_old_and_the_new(
    finetune_images, vision_folder, tmp_path, share
) -> None:
    quiet = ["--freeze", 1, "--forgetting", "off", "--quiet"]
    assert finetune_images(*quiet, out="new").code == 0
    assert finetune_images(*quiet, "--interpolate", share, out="mixed").code == 0
    old = encoder(vision_folder)
    new, mixed = (encoder(Checkpoint.open(tmp_path / o).model_folder) for o in ("new", "mixed"))
    assert any(not torch.equal(old[name], new[name]) for name in old)
    for name, before in old.items():
        after = new[name]
        if before.is_floating_point() and not (share and "running_" in name):
            expected = before + share * (after - before)
            torch.testing.assert_close(mixed[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_a_mixture_normalises_by_what_it_sees_itself(finetune_images, tmp_path) -> None:
    mixed = ["--freeze", 1, "--forgetting", "off", "--interpolate", 0.5, "--lr", 5e-3]
    assert finetune_images(*mixed, "--quiet").code == 0
    checkpoint = Checkpoint.open(tmp_path / "out")
    load = transformers.AutoModelForImageClassification.from_pretrained
    model = load(checkpoint.model_folder).eval()
    images = [each.read() for each in checkpoint.examples().split("train").images]
    pixels = torch.from_numpy(checkpoint.preprocessor()(images).arrays["pixel_values"])
    # The first that trains, right behind what is frozen: its mean is that over all rows' places.
    norm, seen = model.resnet.encoder.stages[1].layers[0].shortcut.normalization, []
    norm.register_forward_pre_hook(lambda _norm, values: seen.append(values[0]))
    with torch.no_grad():
        model(pixel_values=pixels)
    mean = seen[0].mean(dim=(0, 2, 3))
    assert (norm.running_mean - mean).abs().max() < 0.1 * mean.abs().max()


def test_an_old_set_of_images_tells_what_was_forgotten(finetune_images, tmp_path) -> None:
    first = digit_folder(tmp_path / "first", [r for r in range(200) if digits()[1][r] < 5])
    assert finetune_images("--quiet", "--epochs", 3, data=first).code == 0
    old = digit_folder(tmp_path / "old", [r for r in range(200, 300) if digits()[1][r] < 5])
    more = digit_folder(tmp_path / "more", [r for r in range(200) if digits()[1][r] >= 5])
    went_on = ["--from", tmp_path / "out", "--add", more, "--new-labels", "--old", old]
    run = finetune_images(*went_on, "--json", data=None, model=None, out="next")
    assert run.code == 0, run.err
    told = run.json["forgetting"]
    assert (told["probe"], told["metric"]) == ("old examples", "accuracy")
    assert told["rows"] == sum(1 for r in range(200, 300) if digits()[1][r] < 5)
    texts = tmp_path / "old.csv"
    texts.write_text("text,label\na text,1\nanother,2\n")
    refused = finetune_images(*went_on[:-1], texts, data=None, model=None, out="refused")
    assert refused.code == 2
    assert "holds texts, and the model reads images" in refused.err


def test_going_on_with_more_images_finds_depth_cache_and_views(finetune_images, tmp_path) -> None:
    views = ["--cache", "on", "--augment", "light", "--augment-views", 2]
    run = finetune_images("--freeze", 3, *views)
    assert run.code == 0, run.err
    assert "--augment light shows of each training image 2 views in turn, cached" in run.err
    more = digit_folder(tmp_path / "more", range(150, 190))
    went_on = ["--from", tmp_path / "out", "--add", more, *views, "--json"]
    run = finetune_images(*went_on, data=None, model=None, out="next")
    assert run.code == 0, run.err
    first, second = (cache_of(tmp_path / name) for name in ("out", "next"))
    assert run.json["frozen"] == 3
    assert second["found"] == first["filled"]
    added = run.json["rows_added"]
    assert second["filled"] == 3 * added["train"] + added["validation"] + added["test"]
    assert run.json["changes"]["old"]["n"] > 0
    assert "What changed" in (tmp_path / "next" / "report.html").read_text()


def test_augmentation_without_a_number_of_views_runs_live_and_says_so(
    finetune_images, tmp_path
) -> None:
    run = finetune_images("--augment", "flip", "--freeze", 2)
    assert run.code == 0, run.err
    assert "a new view in every epoch, computed live" in run.err
    use = cache_of(tmp_path / "out")
    assert not use["used"]
    assert "--augment-views" in use["reason"]
    assert not (tmp_path / "cache").exists()


def test_views_that_are_not_cached_are_computed_live(finetune_images) -> None:
    options = ["--augment", "flip", "--augment-views", 3, "--cache", "off", "--freeze", 2]
    run = finetune_images(*options)
    assert run.code == 0, run.err
    assert "3 views in turn, computed live" in run.err


def test_options_of_views_that_cannot_be_are_refused(finetune_images) -> None:
    for options, words in (
        (["--augment-views", 2], "--augment-views says how many views --augment makes"),
        (["--augment", "flip", "--augment-views", 0], "--augment-views is 0; it must be 1 or more"),
        (["--augment", "flip", "--cache", "on"], "give --augment-views, as 4"),
    ):
        run = finetune_images(*options)
        assert run.code == 2
        assert words in run.err


def test_frozen_weights_and_statistics_are_written_as_they_were(
    finetune_images, vision_folder, tmp_path
) -> None:
    run = finetune_images("--freeze", 2, "--cache", "on", "--epochs", 2, "--quiet")
    assert run.code == 0, run.err
    old, new = encoder(vision_folder), encoder(Checkpoint.open(tmp_path / "out").model_folder)
    frozen = ("resnet.embedder", "resnet.encoder.stages.0", "resnet.encoder.stages.1.layers.0")
    names = [name for name in old if name.startswith(frozen)]
    assert any(name.endswith("running_var") for name in names)
    for name in names:
        assert torch.equal(old[name], new[name]), name
    moved = [name for name in old if not torch.equal(old[name], new[name])]
    assert any(name.endswith("running_var") for name in moved)


def test_what_is_cached_answers_as_what_is_written(finetune_images, tmp_path) -> None:
    """Validation in the epochs is read from the cache; the checkpoint is the whole model."""
    options = ["--freeze", 2, "--cache", "on", "--calibrate", "none", "--json"]
    run = finetune_images(*options)
    assert run.code == 0, run.err
    made = Checkpoint.open(tmp_path / "out")
    part = made.examples().split("validation")
    model = transformers.AutoModelForImageClassification.from_pretrained(made.model_folder).eval()
    arrays = made.preprocessor()([image.read() for image in part.images]).arrays
    with torch.no_grad():
        logits = model(torch.from_numpy(arrays["pixel_values"])).logits.numpy()
    told = read(tmp_path / "out", "metrics.json")["epochs"][0]["validation"]
    assert told["correct"] == int((logits.argmax(axis=1) == part.labels).sum())
