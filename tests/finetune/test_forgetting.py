"""``edgewright finetune``: forgetting is told, and weights are mixed as asked."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import bert_config, make_rows, save_tokenizer, write_csv
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

from edgewright.checkpoint import Checkpoint
from edgewright.finetune.evaluate import score
from edgewright.manifest import verify

HARD = ("--lr", 5e-3, "--freeze", 1, "--calibrate", "none")


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def record(folder):
    return json.loads((folder / "metrics.json").read_bytes())


def test_forgetting_is_told_by_default_and_repeats(finetune, tmp_path):
    assert finetune(*HARD, out="one").code == 0
    run = finetune(*HARD, "--json", out="two")
    told = run.json["forgetting"]
    assert (told["probe"], told["metric"]) == ("nearest neighbours", "neighbours_kept")
    assert told["before"] == 1.0
    assert 0 < told["after"] == told["written"] < 1
    kept = record(tmp_path / "two")["forgetting"]
    assert kept == record(tmp_path / "one")["forgetting"]
    assert "no masked-language head" in kept["reason"]
    assert kept["sweep"] == []
    page = (tmp_path / "two" / "report.html").read_text()
    assert "nearest neighbours kept" in page
    assert ">--forgetting</span> full" in page


def test_measuring_changes_nothing_of_what_is_written(finetune, tmp_path):
    for choice in ("off", "fast", "full"):
        assert finetune(*HARD, "--forgetting", choice, out=choice).code == 0
    one, two, three = (weights(tmp_path / choice) for choice in ("off", "fast", "full"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(one[name], three[name]) for name in one)
    assert record(tmp_path / "off")["forgetting"] is None
    assert "Forgetting" not in (tmp_path / "off" / "report.html").read_text()


def test_a_mixture_is_written_measured_and_recorded(finetune, tmp_path, model_folder):
    assert finetune(*HARD, out="new").code == 0
    assert finetune(*HARD, "--interpolate", 0, out="old").code == 0
    run = finetune(*HARD, "--interpolate", 0.7, "--json", out="mixed")
    new, old, mixed = (weights(tmp_path / name) for name in ("new", "old", "mixed"))
    pretrained = load_file(model_folder / "model.safetensors")
    for name, tensor in pretrained.items():
        assert torch.equal(old[f"bert.{name}"], tensor)
    moved = [name for name in new if not torch.equal(new[name], old[name])]
    assert moved
    for name in new:
        torch.testing.assert_close(mixed[name], old[name] + 0.7 * (new[name] - old[name]))
    assert torch.equal(old["classifier.weight"], new["classifier.weight"])  # no old one to mix
    told = run.json["forgetting"]
    assert run.json["interpolate"] == 0.7
    assert told["after"] < told["written"] <= 1
    assert verify(tmp_path / "mixed").manifest["config"]["interpolate"] == 0.7
    assert "as written, 0.7 new" in (tmp_path / "mixed" / "report.html").read_text()


def test_the_test_figures_are_those_of_the_mixture(finetune, tmp_path):
    run = finetune(*HARD, "--interpolate", 0.4, "--forgetting", "off", "--json")
    assert run.json["forgetting"] is None
    made = Checkpoint.open(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(made.model_folder)
    test = made.examples().split("test")
    inputs = made.preprocessor()(test.texts).arrays
    with torch.no_grad():
        logits = model(**{name: torch.from_numpy(a) for name, a in inputs.items()}).logits
    scores = score(test.labels, logits.numpy())
    assert run.json["test_accuracy"] == scores.accuracy
    assert record(tmp_path / "out")["test"]["loss"] == pytest.approx(scores.loss, rel=1e-4)


def test_the_sweep_goes_from_the_old_weights_to_the_new_ones(finetune, tmp_path):
    run = finetune(*HARD, "--forgetting", "full", "--interpolate", 0.65, "--json")
    told, kept = run.json["forgetting"], record(tmp_path / "out")["forgetting"]
    shares = [each["share"] for each in kept["sweep"]]
    assert shares == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.8, 0.9, 1]
    retained = [each["retained"] for each in kept["sweep"]]
    assert (retained[0], retained[7], retained[-1]) == (1.0, told["written"], told["after"])
    epochs = record(tmp_path / "out")["epochs"]
    assert kept["sweep"][-1]["validation_accuracy"] == epochs[-1]["validation"]["accuracy"]
    assert kept["head_stays_new"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "share of the new weights" in page
    assert "The trade" in page


def test_a_model_with_its_masked_language_head_is_asked_by_it(finetune, tmp_path):
    folder = tmp_path / "masked"
    torch.manual_seed(3)
    BertForMaskedLM(bert_config()).save_pretrained(folder)
    save_tokenizer(folder)
    run = finetune(*HARD, "--json", model=folder)
    assert run.code == 0, run.err
    assert run.json["forgetting"]["probe"] == "masked tokens"
    figures = record(tmp_path / "out")["forgetting"]
    assert figures["before"]["pseudo_perplexity"] > 1
    assert figures["before"] != figures["after"]


def test_an_old_set_is_answered_before_and_after_and_its_head_is_mixed(finetune, tmp_path):
    assert finetune("--lr", 5e-3, "--freeze", 0, "--epochs", 4, out="first").code == 0
    old = write_csv(tmp_path / "old.csv", make_rows(90, seed=5))
    rain = [(f"the game server cheese {i} of old", "food") for i in range(40)]
    more = write_csv(tmp_path / "more.csv", rain)
    run = finetune(
        "--from", tmp_path / "first", "--add", more, "--old", old, "--forgetting", "full",
        "--interpolate", 0, "--calibrate", "none", "--lr", 5e-3, "--json",
        data=None, model=None, out="next",
    )  # fmt: skip
    assert run.code == 0, run.err
    first, following = weights(tmp_path / "first"), weights(tmp_path / "next")
    assert all(torch.equal(first[name], following[name]) for name in first)  # the head included
    told, kept = run.json["forgetting"], record(tmp_path / "next")["forgetting"]
    assert (told["probe"], told["rows"]) == ("old examples", 90)
    assert told["before"] == told["written"] == kept["sweep"][0]["retained"]
    assert not kept["head_stays_new"]
    assert kept["change"] == {"lost": 0, "gained": 0, "interval": kept["change"]["interval"]}
    assert verify(tmp_path / "next").manifest["made_from"].keys() == {
        "model", "data", "from", "old",
    }  # fmt: skip
    assert "paired, exact" in (tmp_path / "next" / "report.html").read_text()


def test_an_old_set_goes_with_labels_that_are_new(finetune, tmp_path):
    learn = ("--lr", 2e-3, "--freeze", 0, "--epochs", 10, "--patience", 10)
    data = write_csv(tmp_path / "rows.csv", make_rows(300))
    assert finetune(*learn, data=data, out="first").code == 0
    made = Checkpoint.open(tmp_path / "first")
    texts = [text for text, _ in make_rows(60, seed=5)]
    said = answers(made, texts)
    assert len(set(said)) > 1
    # Labelled by the checkpoint itself, so that before training every row is right.
    old = write_csv(tmp_path / "old.csv", zip(texts, said, strict=True))
    rain = [(f"rain and wind number {index} over the hills", "weather") for index in range(40)]
    more = write_csv(tmp_path / "more.csv", rain)
    run = finetune(
        "--from", tmp_path / "first", "--add", more, "--new-labels", "--old", old, "--json",
        "--interpolate", 0.5, data=None, model=None, out="next",
    )  # fmt: skip
    assert run.code == 0, run.err
    told = run.json["forgetting"]
    assert (told["rows"], told["before"]) == (60, 1.0)
    assert record(tmp_path / "next")["forgetting"]["head_stays_new"]


def answers(made, texts):
    """The labels a checkpoint's own model gives."""
    model = AutoModelForSequenceClassification.from_pretrained(made.model_folder)
    inputs = made.preprocessor()(texts).arrays
    with torch.no_grad():
        logits = model(**{name: torch.from_numpy(a) for name, a in inputs.items()}).logits
    return [made.labels[index] for index in logits.argmax(dim=1).tolist()]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--old", "old.csv"], "--old goes with --from"),
        (["--interpolate", 1.5], "--interpolate is 1.5; it must be from 0"),
        (["--old", "old.csv", "--forgetting", "off"], "--forgetting is off"),
        (["--forgetting", "half"], "half"),
    ],
)
def test_options_that_cannot_work_are_refused(finetune, options, words):
    run = finetune(*options)
    assert run.code == 2
    assert words in run.err


def test_an_old_set_that_cannot_be_used_is_refused_before_training(
    finetune, checkpoint, tmp_path, monkeypatch
):
    from edgewright.finetune import pipeline

    monkeypatch.setattr(pipeline, "train", lambda *_: pytest.fail("it trained"))
    for content, words in (([("rain", "weather")], "'weather'"), ([], "no rows")):
        old = write_csv(tmp_path / "old.csv", content)
        run = finetune("--from", checkpoint, "--old", old, data=None, model=None, out="next")
        assert run.code == 2
        assert words in run.err


def test_a_handful_of_rows_ends_well(finetune, tmp_path):
    data = write_csv(tmp_path / "ten.csv", make_rows(10))
    run = finetune("--forgetting", "full", "--interpolate", 0.5, "--json", data=data)
    assert run.code == 0, run.err
    empty = finetune("--splits", "90/0/0/0/10/0", "--forgetting", "full", "--json", out="empty")
    assert empty.code == 0, empty.err
    sweep = record(tmp_path / "empty")["forgetting"]["sweep"]
    assert {each["validation_accuracy"] for each in sweep} == {None}
