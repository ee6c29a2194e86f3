"""``edgewright finetune`` from the outside: what it writes, says and refuses."""

import json
import re
import sys

import numpy as np
import pytest
import torch
import yaml
from tiny_models import make_rows, save_tokenizer, tiny_classifier, write_csv
from transformers import AutoModelForSequenceClassification

from edgewright.checkpoint import Checkpoint
from edgewright.finetune import notes, pipeline
from edgewright.finetune.checkpoint_writer import CheckpointContents
from edgewright.finetune.summary import millions
from edgewright.manifest import verify
from edgewright.output import Output


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_checkpoint_holds_what_its_contract_says(finetune, tmp_path, model_folder):
    run = finetune("--freeze", 2, "--json")
    assert run.code == 0
    folder = tmp_path / "out"
    assert tree(folder) == {
        "model/config.json", "model/model.safetensors", "preprocessing/preprocess.json",
        "preprocessing/tokenizer.json", "examples.parquet", "splits.parquet", "metrics.json",
        "audit.json", "run.yaml", "manifest.json", "measurements.json", "report.html", "seal.json",
    }  # fmt: skip
    manifest = verify(folder).manifest
    assert manifest["task"] == "text-classification"
    assert manifest["labels"] == ["food", "sports", "tech"]
    assert manifest["made_from"].keys() == {"model", "data"}
    assert manifest["packages"].keys() == {
        "edgewright",
        "numpy",
        "tokenizers",
        "torch",
        "transformers",
    }
    assert manifest["config"] == yaml.safe_load((folder / "run.yaml").read_text())
    assert manifest["config"]["freeze"] == 2
    assert manifest["test"]["n"] == run.json["rows"]["test"]
    measured = json.loads((folder / "measurements.json").read_bytes())
    assert measured["seconds"].keys() == {
        "prepare",
        "cache",
        "survey",
        "audit",
        "train",
        "forgetting",
        "evaluate",
    }
    assert measured["host"]["cpu"]


def test_the_json_object_has_the_figures_and_stdout_nothing_else(finetune):
    run = finetune("--freeze", 3, "--json")
    summary = run.json
    low, high = summary["test_accuracy_interval"]
    assert 0 <= low <= summary["test_accuracy"] <= high <= 1
    assert (summary["frozen"], summary["blocks"]) == (3, 4)
    assert (summary["best_epoch"], summary["epochs_run"]) == (1, 1)
    assert 0 < summary["trainable_parameters"] < summary["parameters"]
    assert summary["device"] in ("cpu", "cuda")
    assert summary["seconds"] > 0
    assert sum(summary["rows"].values()) == 150
    assert run.err == ""


def test_a_person_is_told_the_plan_each_epoch_and_the_next_command(finetune, tmp_path):
    run = finetune("--epochs", 2, "--max-length", 12)
    assert "2 of 4 blocks frozen" in run.err
    assert "of the texts are longer than 12 tokens and are cut" in run.err
    assert "epoch 1/2  train loss" in run.err
    assert "epoch 2/2  train loss" in run.err
    assert "macro-F1" in run.err
    assert "test accuracy" in run.out
    assert f"edgewright optimize {tmp_path / 'out'} -o BUNDLE" in run.out
    truncated = json.loads((tmp_path / "out" / "metrics.json").read_bytes())["truncated"]
    assert f"{truncated:.1%} of texts, at 12 tokens" in run.out


def test_texts_in_a_language_that_the_tokenizer_does_not_know_are_told(finetune, tmp_path):
    rows = make_rows(140)
    rows += [(f"дом мир {text}", label) for text, label in rows[:3]]  # known for the most part
    foreign = [(f"дом мир сад {number}", rows[number][1]) for number in range(10)]
    run = finetune(data=write_csv(tmp_path / "rows.csv", [*rows, *foreign]))
    share = json.loads((tmp_path / "out" / "metrics.json").read_bytes())["unknown"]
    assert 0.05 < share < 0.08  # some rows are of the splits that only optimize reads
    assert f"of {share:.1%} of the texts the tokenizer knows less than half" in run.err
    assert f"unknown         {share:.1%} of texts" in run.out
    assert "texts mostly unknown" in (tmp_path / "out" / "report.html").read_text()


def test_texts_that_the_tokenizer_knows_are_not_doubted(finetune, tmp_path):
    run = finetune()
    told = run.out + run.err + (tmp_path / "out" / "report.html").read_text()
    assert "unknown" not in told
    assert "the tokenizer knows" not in told


def test_quiet_prints_only_the_result(finetune):
    run = finetune("--quiet")
    assert run.err == ""
    assert "test accuracy" in run.out


def test_the_saved_model_loads_and_answers_to_the_bit_as_the_one_in_memory(
    finetune, tmp_path, monkeypatch
):
    kept: list[CheckpointContents] = []
    write = pipeline.write_checkpoint

    def spy(target, contents, **options):
        kept.append(contents)
        return write(target, contents, **options)

    monkeypatch.setattr(pipeline, "write_checkpoint", spy)
    assert finetune().code == 0
    made = Checkpoint.open(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(made.model_folder)
    assert model.config.id2label == dict(enumerate(made.labels))
    texts = made.examples().split("test").texts
    arrays = made.preprocessor()(texts).arrays
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, kept[0].model(**inputs).logits)
    # Nothing of the freezing is left in the one that was written.
    assert [type(each) for each in kept[0].model.modules()] == [type(e) for e in model.modules()]
    assert all(parameter.requires_grad for parameter in kept[0].model.parameters())


def test_the_metrics_are_those_of_the_saved_model_on_the_test_split(finetune, tmp_path):
    data = write_csv(tmp_path / "rows.csv", make_rows(400))
    long = ("--epochs", 15, "--lr", 2e-3, "--freeze", 0, "--splits", "60/10/0/0/0/30")
    run = finetune(*long, "--json", data=data)
    made = Checkpoint.open(tmp_path / "out")
    test = made.examples().split("test")
    model = AutoModelForSequenceClassification.from_pretrained(made.model_folder)
    inputs = {n: torch.from_numpy(a) for n, a in made.preprocessor()(test.texts).arrays.items()}
    with torch.no_grad():
        predicted = model(**inputs).logits.argmax(1).numpy()
    assert run.json["test_accuracy"] == np.mean(predicted == test.labels)
    assert run.json["rows"]["test"] == len(test)
    assert run.json["test_accuracy"] > 0.6  # chance is a third


def test_the_same_inputs_give_the_same_manifest(finetune, tmp_path):
    assert finetune("--seed", 3, out="one").code == 0
    assert finetune("--seed", 3, out="two").code == 0
    assert finetune("--seed", 4, out="three").code == 0
    one, two, three = (
        (tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two", "three")
    )
    assert one == two
    weights = [json.loads(each)["files"]["model/model.safetensors"] for each in (one, three)]
    assert weights[0] != weights[1]


def test_the_run_file_reproduces_the_run(finetune, edgewright, tmp_path):
    assert finetune("--lr", 5e-4, "--class-weights", "balanced", "--freeze", 0.75).code == 0
    again = edgewright(
        "finetune", "--config", tmp_path / "out" / "run.yaml", "-o", tmp_path / "again"
    )
    assert again.code == 0
    one, two = ((tmp_path / name / "manifest.json").read_bytes() for name in ("out", "again"))
    assert one == two
    config = json.loads(two)["config"]
    assert (config["freeze"], config["lr"], config["class-weights"]) == (3, 5e-4, "balanced")


def test_options_typed_win_over_the_config_file(finetune, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 3\nlr: 0.001\nfreeze: 1.0\nmetric: loss\npatience: 9\n")
    run = finetune("--config", file, "--lr", 2e-3, "--json")
    assert (run.json["frozen"], run.json["lr"]) == (4, 2e-3)
    assert run.json["epochs_run"] == 1  # the fixture types --epochs 1
    assert json.loads((tmp_path / "out" / "metrics.json").read_bytes())["metric"] == "loss"


def test_balanced_classes_are_learnt_otherwise(finetune, tmp_path):
    rows = [row for index, row in enumerate(make_rows(240)) if row[1] != "food" or index % 5 == 0]
    data = write_csv(tmp_path / "rows.csv", rows)
    weights = []
    for choice in ("none", "balanced"):
        assert finetune("--class-weights", choice, data=data, out=choice).code == 0
        weights.append((tmp_path / choice / "model" / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]


@pytest.mark.parametrize(("freeze", "lr"), [("0", 2e-5), ("2", 1e-4), ("0.5", 1e-4)])
def test_the_rate_follows_the_depth_unless_given(finetune, freeze, lr):
    assert finetune("--freeze", freeze, "--json").json["lr"] == lr


def test_an_existing_target_is_refused_before_any_work_and_replaced_when_asked(
    finetune, tmp_path, monkeypatch
):
    assert finetune("--seed", 1).code == 0
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Task, "prepare", lambda *_: pytest.fail("work was done"))
        run = finetune()
    assert run.code == 2
    assert "exists already" in run.err
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert finetune("--seed", 2, "--overwrite").code == 0
    assert (tmp_path / "out" / "manifest.json").read_bytes() != before


def test_the_report_shows_curves_classes_and_errors_but_no_certify_text(finetune, tmp_path):
    assert finetune("--epochs", 2).code == 0
    made = Checkpoint.open(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert made.artifact.manifest_sha256 in page
    assert page.count("<svg") >= 2
    for words in ("of test rows right", "Worst errors", "certify", "macro-F1", "sports"):
        assert words in page
    examples = made.examples()
    for split in ("validation", "test"):
        assert [text for text in examples.split(split).texts if text in page]
    for split in ("calibrate", "search", "certify"):  # the audit shows rows of train
        assert not [text for text in examples.split(split).texts if text in page]


def test_ten_rows_end_well(finetune, tmp_path):
    run = finetune("--json", data=write_csv(tmp_path / "ten.csv", make_rows(10)))
    assert run.code == 0
    rows = run.json["rows"]
    assert sum(rows.values()) == 10
    if rows["test"] == 0:
        assert run.json["test_accuracy"] is None
        assert run.json["test_accuracy_interval"] is None


@pytest.mark.parametrize("shares", ["90/0/0/0/10/0"])
def test_without_validation_and_test_rows_it_says_so_and_gives_null(finetune, tmp_path, shares):
    run = finetune("--splits", shares, "--epochs", 2, "--json")
    assert run.code == 0
    assert "no validation rows: no early stopping" in run.err
    assert (
        run.json["test_accuracy"]
        is run.json["test_accuracy_interval"]
        is run.json["macro_f1"]
        is None
    )
    assert (run.json["best_epoch"], run.json["epochs_run"]) == (2, 2)
    assert "the test split is empty" in (tmp_path / "out" / "report.html").read_text()


def test_absent_classes_are_reported_by_split(finetune, tmp_path):
    rows = [row for row in make_rows(120) if row[1] != "food"] + [("bread and soup", "food")]
    run = finetune(data=write_csv(tmp_path / "rows.csv", rows))
    assert run.code == 0
    assert "split has no row of food" in run.err


def test_files_given_for_validation_and_test_are_those_splits(finetune, tmp_path):
    validation = write_csv(tmp_path / "v.csv", make_rows(12, seed=5))
    test = write_csv(tmp_path / "t.csv", make_rows(15, seed=6))
    run = finetune("--validation", validation, "--test", test, "--json")
    assert (run.json["rows"]["validation"], run.json["rows"]["test"]) == (12, 15)


def test_a_split_column_is_honoured(finetune, tmp_path):
    rows = [(*row, "test" if i < 20 else "train") for i, row in enumerate(make_rows(120))]
    file = write_csv(tmp_path / "rows.csv", rows, ("text", "label", "part"))
    assert finetune("--split-column", "part", "--json", data=file).json["rows"]["test"] == 20


def test_a_log_file_is_told_once_a_minute_how_far_training_is(finetune, monkeypatch):
    monkeypatch.setattr(notes, "_LINE_EACH_S", 0.0)
    line = r"^epoch (\d)/2, loss \d+\.\d+, step (\d+) of (\d+)$"
    told = re.findall(line, finetune("--epochs", 2).err, re.M)
    assert [int(step) for _, step, _ in told] == list(range(1, int(told[0][2]) + 1))
    assert [epoch for epoch, _, _ in told] == sorted(["1", "2"] * (len(told) // 2))


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_line_comes_a_minute_after_the_one_before_where_there_is_no_bar(
    capsys, monkeypatch, on_terminal
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal, raising=False)
    times = iter([100.0, 159.0, 160.0, 219.0, 220.5])
    lines = notes.StepLines(Output(), lambda: next(times))
    for line in "abcd":
        lines.tell(line)
    assert capsys.readouterr().err == ("" if on_terminal else "b\nd\n")


def test_where_nothing_is_frozen_no_frozen_part_is_spoken_of(finetune):
    err = finetune("--freeze", 0, "--audit", "off").err
    assert "0 of 4 blocks frozen" in err
    assert "the frozen part" not in err


@pytest.mark.parametrize(
    ("count", "words"), [(835, "835"), (54_321, "54,321"), (170_170, "0.2M"), (22_713_986, "22.7M")]
)
def test_small_models_have_parameters_too(count, words):
    assert millions(count) == words


def test_out_of_memory_is_told_and_recorded_and_the_run_ends_well(finetune, tmp_path, monkeypatch):
    forward = torch.nn.Embedding.forward

    def limited(self, ids):
        if torch.is_grad_enabled() and ids.dim() == 2 and len(ids) > 8 and self.num_embeddings > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", limited)
    run = finetune("--json", "--freeze", 0)
    assert run.code == 0
    assert "warning: out of memory: the batch of 16 rows is halved to 8" in run.err
    assert run.json["batch_size"] == 8
    measured = json.loads((tmp_path / "out" / "measurements.json").read_bytes())
    assert measured["batch_size"] == 8


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # when ModernBERT and DeBERTa are imported
@pytest.mark.parametrize(
    "kind", ["roberta", "electra", "distilbert", "mpnet", "deberta-v2", "modernbert", "gpt2"]
)
def test_other_architectures_go_the_whole_way(finetune, tmp_path, kind):
    folder = tmp_path / kind
    tiny_classifier(kind, labels=2).save_pretrained(folder)
    save_tokenizer(folder, model_input_names=["input_ids", "attention_mask"])
    run = finetune("--freeze", 2, "--json", model=folder)
    assert run.code == 0, run.err
    assert (run.json["frozen"], run.json["blocks"]) == (2, 4)
    made = Checkpoint.open(tmp_path / "out")
    before, after = (
        AutoModelForSequenceClassification.from_pretrained(
            each, num_labels=3, ignore_mismatched_sizes=True
        ).state_dict()
        for each in (folder, made.model_folder)
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    for block in ("layer.0.", "layers.0.", "h.0.", "layer.1.", "layers.1.", "h.1.", "embeddings"):
        assert not [name for name in moved if block in name]


def test_help_ends_with_examples_of_options_that_exist(edgewright):
    run = edgewright("finetune", "--help")
    assert run.code == 0
    examples = run.out.partition("Examples:")[2]
    assert examples.count("edgewright finetune") >= 3
    for word in examples.split():
        if word.startswith("--"):
            assert word in run.out.partition("Examples:")[0]
