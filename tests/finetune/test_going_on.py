"""``edgewright finetune --from``: another run on the weights, labels and splits of a checkpoint."""

import csv
import json

import pytest
import torch
from tiny_models import make_rows, write_csv
from transformers import AutoModelForSequenceClassification

from edgewright.checkpoint import Checkpoint
from edgewright.finetune import models


def test_added_rows_move_no_old_one_and_training_goes_on_from_the_weights(
    finetune, checkpoint, tmp_path
):
    more = write_csv(tmp_path / "more.csv", make_rows(60, seed=9))
    run = finetune(
        "--from",
        checkpoint,
        "--add",
        more,
        "--json",
        "--lr",
        "1e-9",
        data=None,
        model=None,
        out="next",
    )
    assert run.code == 0
    old, new = Checkpoint.open(checkpoint), Checkpoint.open(tmp_path / "next")
    before = dict(zip(old.examples().ids, old.examples().splits, strict=True))
    after = dict(zip(new.examples().ids, new.examples().splits, strict=True))
    assert before.items() <= after.items()
    assert len(after) > len(before) + 50
    told = json.loads(run.out)["rows_added"]
    assert told["train"] == len(new.examples().split("train")) - len(old.examples().split("train"))
    assert (
        f"rows added to those of the checkpoint: {len(after) - len(before)} ({told['train']} train"
        in ((tmp_path / "next" / "report.html").read_text())
    )
    assert new.labels == old.labels
    made_from = new.artifact.manifest["made_from"]
    assert made_from["from"] == old.artifact.manifest_sha256
    models = [
        AutoModelForSequenceClassification.from_pretrained(c.model_folder) for c in (old, new)
    ]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert new.preprocessor().settings == old.preprocessor().settings


def test_a_new_row_goes_where_it_would_have_gone_at_the_start(finetune, tmp_path, data_file):
    more = make_rows(60, seed=9)
    with data_file.open(newline="") as file:
        old = [tuple(row) for row in csv.reader(file)][1:]
    all_at_once = write_csv(tmp_path / "all.csv", [*old, *more])
    options = ("--splits", "40/10/10/10/20/10", "--seed", 7)
    assert finetune(*options, out="first").code == 0
    assert finetune(*options, data=all_at_once, out="whole").code == 0
    run = finetune(
        "--from", tmp_path / "first", "--add", write_csv(tmp_path / "more.csv", more), "--seed", 1,
        data=None, model=None, out="next",
    )  # fmt: skip
    assert run.code == 0
    whole, grown = (Checkpoint.open(tmp_path / name).examples() for name in ("whole", "next"))
    assert dict(zip(whole.ids, whole.splits, strict=True)) == dict(
        zip(grown.ids, grown.splits, strict=True)
    )


def test_training_may_go_on_with_the_same_rows(finetune, checkpoint, tmp_path):
    run = finetune("--from", checkpoint, "--freeze", 0, "--json", data=None, model=None, out="next")
    assert run.code == 0
    old, new = Checkpoint.open(checkpoint), Checkpoint.open(tmp_path / "next")
    assert (new.path / "splits.parquet").read_bytes() == (old.path / "splits.parquet").read_bytes()
    assert new.artifact.manifest["splits"] == old.artifact.manifest["splits"]


def test_a_shorter_length_may_be_chosen_when_going_on(finetune, checkpoint, tmp_path):
    run = finetune(
        "--from", checkpoint, "--max-length", 9, "--json", data=None, model=None, out="next"
    )
    assert run.json["max_length"] == 9
    assert Checkpoint.open(tmp_path / "next").preprocessor().max_length == 9


def test_labels_that_the_checkpoint_does_not_know_are_refused(finetune, checkpoint, tmp_path):
    more = write_csv(tmp_path / "more.csv", [("rain and wind", "weather"), ("goal", "sports")])
    run = finetune("--from", checkpoint, "--add", more, data=None, model=None, out="next")
    assert run.code == 2
    assert "more.csv: row 1" in run.err
    assert "weather" in run.err
    assert not (tmp_path / "next").exists()


def test_an_altered_checkpoint_is_refused_by_file(finetune, checkpoint):
    weights = checkpoint / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    run = finetune("--from", checkpoint, data=None, model=None, out="next")
    assert run.code == 4
    assert "model.safetensors was altered" in run.err


def test_a_bundle_is_no_checkpoint(finetune, checkpoint, tmp_path):
    manifest = json.loads((checkpoint / "manifest.json").read_bytes())
    bundle = tmp_path / "bundle"
    from edgewright.bundle import BUNDLE
    from edgewright.manifest import new_folder, seal

    with new_folder(bundle) as folder:
        seal(folder, BUNDLE, {"labels": manifest["labels"]}, {})
    run = finetune("--from", bundle, data=None, model=None, out="next")
    assert run.code == 4
    assert "is an edgewright.bundle, and a checkpoint is wanted" in run.err


def test_new_labels_come_after_the_old_ones_whose_rows_of_the_head_stay(
    finetune, checkpoint, tmp_path
):
    rain = [(f"rain and wind number {index} over the hills", "weather") for index in range(40)]
    more = write_csv(tmp_path / "more.csv", rain)
    run = finetune(
        "--from", checkpoint, "--add", more, "--new-labels", "--lr", "1e-9", "--json",
        data=None, model=None, out="next",
    )  # fmt: skip
    assert run.code == 0
    old, new = Checkpoint.open(checkpoint), Checkpoint.open(tmp_path / "next")
    assert new.labels == (*old.labels, "weather")
    before, after = (
        AutoModelForSequenceClassification.from_pretrained(c.model_folder).state_dict()
        for c in (old, new)
    )
    for key, tensor in before.items():
        torch.testing.assert_close(after[key][: len(tensor)], tensor, atol=1e-6, rtol=0)
    classes = len(old.labels)
    assert after["classifier.weight"].shape[0] == classes + 1
    assert after["classifier.weight"][classes:].abs().max() > 0
    assert new.examples().counts()["train"]["weather"] > 0


def test_new_labels_need_a_checkpoint_to_be_new_to(finetune):
    run = finetune("--new-labels")
    assert run.code == 2
    assert "--new-labels goes with --from" in run.err


def test_the_frozen_part_and_its_cache_are_those_of_the_checkpoint(finetune, tmp_path):
    cache = ("--cache", "on", "--cache-dir", tmp_path / "cache", "--freeze", 3)
    assert finetune(*cache, "--epochs", 2).code == 0
    more = write_csv(tmp_path / "more.csv", make_rows(60, seed=9))
    went_on = ("--from", tmp_path / "out", "--add", more, *cache[:4], "--json")
    run = finetune(*went_on, data=None, model=None, out="next")
    assert run.code == 0, run.err
    first, second = (
        json.loads((tmp_path / name / "measurements.json").read_bytes())["activation_cache"]
        for name in ("out", "next")
    )
    assert run.json["frozen"] == 3
    assert second["found"] == first["filled"]
    assert 0 < second["filled"] <= 60


def test_what_a_grown_head_draws_is_no_answer_of_the_checkpoint(finetune, tmp_path, monkeypatch):
    first = finetune("--epochs", 3, "--lr", 1e-3, "--calibrate", "none", "--json")
    assert first.json["test_accuracy"] > 0
    restore = models._restore_rows

    def loudly(model, folder, keys):
        restore(model, folder, keys)
        with torch.no_grad():
            model.classifier.bias[3:] = 100.0

    monkeypatch.setattr(models, "_restore_rows", loudly)
    rows = [(text, "weather") for text, _ in make_rows(30, seed=9)]
    more = write_csv(tmp_path / "more.csv", rows)
    grown = finetune(
        "--from", tmp_path / "out", "--add", more, "--new-labels", "--json",
        data=None, model=None, out="next",
    )  # fmt: skip
    told = grown.json["changes"]
    assert told["old"]["accuracy_before"] == first.json["test_accuracy"]
    assert told["new"]["accuracy_before"] == 0


def test_the_report_says_what_changed_on_old_test_rows_and_on_new(finetune, tmp_path):
    # Each topic under another label than before, which is what feedback would teach.
    moved = {"sports": "tech", "tech": "food", "food": "sports"}
    rows = [(text, moved[label]) for text, label in make_rows(200, seed=4)]
    learn = ("--epochs", 3, "--lr", 1e-3, "--json")
    first = finetune(*learn)
    assert first.code == 0
    more = write_csv(tmp_path / "more.csv", rows)
    went_on = ("--from", tmp_path / "out", "--add", more, *learn)
    run = finetune(*went_on, data=None, model=None, out="next")
    assert run.code == 0, run.err
    old, new = run.json["changes"]["old"], run.json["changes"]["new"]
    assert (old["n"], old["accuracy_before"]) == (
        first.json["rows"]["test"],
        pytest.approx(first.json["test_accuracy"]),
    )
    assert old["n"] + new["n"] == run.json["rows"]["test"]
    right_after = old["right_after"] + new["right_after"]
    assert right_after / run.json["rows"]["test"] == pytest.approx(run.json["test_accuracy"])
    for change in (old, new):
        assert change["right_after"] - change["right_before"] == change["won"] - change["lost"]
        assert change["lost"] + change["won"] > 0
    assert "What changed" in (tmp_path / "next" / "report.html").read_text()


def test_a_run_from_a_pre_trained_model_has_nothing_to_compare(finetune, tmp_path):
    assert finetune("--json").json["changes"] == {}
    assert "What changed" not in (tmp_path / "out" / "report.html").read_text()
