"""The temperature: fitted where it can be, in the written weights, changing no class."""

import json

import numpy as np
import pytest
import torch
from tiny_models import make_rows, tiny_classifier, write_csv
from transformers import AutoModelForSequenceClassification

from edgewright import metrics
from edgewright.checkpoint import Checkpoint
from edgewright.finetune.calibration import (
    Calibration,
    calibration_figures,
    fit_temperature,
    fold_temperature,
    reliability,
    scores,
)
from edgewright.finetune.evaluate import Answers, cross_entropy

TOKENS = {"input_ids": torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])}
TOKENS["attention_mask"] = (TOKENS["input_ids"] != 0).long()


def sampled(temperature, rows=4000, seed=0):
    """Labels drawn from the softmax of logits that are then multiplied by ``temperature``."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 4)) * 2
    labels = np.array([rng.choice(4, p=each) for each in scores(logits)])
    return labels, (logits * temperature).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_of_overconfident_and_timid_logits_is_found(temperature):
    labels, logits = sampled(temperature)
    found = fit_temperature(labels, logits)
    assert found.skipped == ""
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    best = cross_entropy(labels, logits / found.temperature).mean()
    for other in (0.98, 1.02):
        assert cross_entropy(labels, logits / (found.temperature * other)).mean() > best


LABELS = np.arange(40) % 2
RIGHT = np.eye(2, dtype=np.float32)[LABELS]
ONE_HAIR_WRONG = RIGHT.copy()
ONE_HAIR_WRONG[0] = [0.0, 1e-12]
UNFIT = {
    "none": (LABELS[:0], np.empty((0, 0), np.float32), "0 validation rows; 20 are needed"),
    "few": (LABELS[:19], RIGHT[:19], "19 validation rows"),
    "separable": (LABELS, RIGHT, "every validation row is right"),
    "all wrong": (LABELS, RIGHT[:, ::-1], "no validation row is right"),
    "all but separable": (LABELS, ONE_HAIR_WRONG, "not between 0.05 and 20"),
    "constant answers": (
        LABELS, np.tile(np.float32([[0.0, 5.0]]), (40, 1)), "not between 0.05 and 20",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_where_no_temperature_is_best_it_is_1_and_says_why(case):
    labels, logits, reason = UNFIT[case]
    found = fit_temperature(labels, logits)
    assert found.temperature == 1.0
    assert reason in found.skipped


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # when ModernBERT and DeBERTa are imported
@pytest.mark.parametrize(
    "kind",
    ["bert", "roberta", "electra", "distilbert", "mpnet", "deberta-v2", "modernbert", "gpt2"],
)
def test_the_last_layer_of_every_family_takes_the_temperature(kind):
    model = tiny_classifier(kind)
    model.config.pad_token_id = 0
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.05)  # a bias that is not 0
        before = model(**TOKENS).logits
        assert fold_temperature(model, 1.7, TOKENS) == ""
        after = model(**TOKENS).logits
    torch.testing.assert_close(after, before / 1.7, rtol=1e-5, atol=1e-6)


class Cosine(torch.nn.Module):
    """A head whose logits do not depend on the length of its weights."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        return type("Answer", (), {"logits": torch.nn.functional.normalize(self.layer(x))})()


class Bare(torch.nn.Module):
    def forward(self, x):
        return type("Answer", (), {"logits": x[:, :3]})()


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Cosine(), "not those of its last linear layer"), (Bare(), "no linear layer")],
)
def test_a_head_that_cannot_take_it_is_left_as_it_was(model, reason):
    batch = {"x": torch.randn(5, 4, generator=torch.Generator().manual_seed(0))}
    before = model(**batch).logits.detach()
    assert reason in fold_temperature(model, 2.0, batch)
    assert torch.equal(model(**batch).logits, before)


def test_figures_before_are_those_of_the_logits_without_the_temperature():
    labels, logits = sampled(3.0)
    after = Answers("test", [], labels, logits / np.float32(3.0))
    figures = calibration_figures(Calibration(3.0, 10), after)
    plain = metrics.expected_calibration_error(labels, scores(logits))
    assert figures["ece_before"] == pytest.approx(plain, rel=1e-4)
    assert figures["ece_after"] < 0.03 < figures["ece_before"]


def test_the_bins_of_the_diagram_add_up_to_the_calibration_error():
    labels, logits = sampled(2.0, rows=500)
    bins = reliability(labels, logits)
    assert sum(each.rows for each in bins) == 500
    gap = sum(each.rows * abs(each.confidence - each.accuracy) for each in bins) / 500
    assert gap == pytest.approx(metrics.expected_calibration_error(labels, scores(logits)))


@pytest.fixture
def noisy(tmp_path):
    """Rows of which a fifth has a wrong label: no model can be right on all of them."""
    names = ["food", "sports", "tech"]
    rows = [
        (text, names[index // 5 % 3] if index % 5 == 0 else label)
        for index, (text, label) in enumerate(make_rows(300))
    ]
    return write_csv(tmp_path / "noisy.csv", rows)


LONG = ("--freeze", 0, "--epochs", 12, "--patience", 12, "--lr", 2e-3, "--splits", "50/25/0/0/0/25")


def logits_of(folder, made):
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = made.preprocessor()(made.examples().split("test").texts).arrays
    with torch.no_grad():
        return model(**{name: torch.from_numpy(a) for name, a in inputs.items()}).logits


def test_what_is_written_answers_with_the_temperature_and_the_same_classes(
    finetune, noisy, tmp_path
):
    assert finetune(*LONG, "--calibrate", "none", data=noisy, out="plain").code == 0
    run = finetune(*LONG, "--json", data=noisy)
    made = Checkpoint.open(tmp_path / "out")
    told = run.json
    assert told["temperature"] != 1
    plain = logits_of(tmp_path / "plain" / "model", made)
    written = logits_of(made.model_folder, made)
    torch.testing.assert_close(written, plain / told["temperature"], rtol=1e-4, atol=1e-5)
    assert torch.equal(written.argmax(1), plain.argmax(1))
    labels = made.examples().split("test").labels
    for name, logits in (("ece_before", plain), ("ece_after", written)):
        expected = metrics.expected_calibration_error(labels, scores(logits.numpy()))
        assert told[name] == pytest.approx(expected, abs=1e-4)
    record = json.loads((tmp_path / "out" / "metrics.json").read_bytes())
    assert record["calibration"]["temperature"] == told["temperature"]
    assert record["calibration"]["rows"] == told["rows"]["validation"]
    # Measured on the weights that were written, so that its loss is the calibrated one.
    assert record["test"]["loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(written, torch.from_numpy(labels)).item(), rel=1e-4
    )
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Temperature {told['temperature']:.3f}" in page
    assert "Reliability" in page


def test_training_goes_on_from_a_calibrated_checkpoint(finetune, noisy, tmp_path):
    assert finetune(*LONG, data=noisy).code == 0
    run = finetune("--from", tmp_path / "out", "--json", data=None, model=None, out="next")
    assert run.code == 0
    assert run.json["temperature"] > 0


def test_too_few_rows_and_none_asked_for_leave_the_scores_and_say_so(finetune, tmp_path):
    run = finetune("--json")  # 12 validation rows or so
    assert (run.json["temperature"], run.json["ece_before"]) == (1.0, run.json["ece_after"])
    assert "20 are needed" in (tmp_path / "out" / "report.html").read_text()
    empty = finetune("--splits", "90/0/0/0/10/0", "--json", out="empty").json
    assert (empty["temperature"], empty["ece_before"], empty["ece_after"]) == (1.0, None, None)
