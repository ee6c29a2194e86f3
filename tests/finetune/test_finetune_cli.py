"""``edgewright finetune`` from the outside: what it writes, says and refuses."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from tiny_models import make_rows, save_tokenizer, tiny_classifier, write_csv
from transformers import AutoModelForSequenceClassification, BertTokenizer

from edgewright.checkpoint import Checkpoint
from edgewright.finetune import pipeline
from edgewright.finetune.checkpoint_writer import CheckpointContents
from edgewright.manifest import verify


def tree(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def is_clean(folder) -> bool:
    """Neither a target nor a staging folder is left."""
    return not list(folder.iterdir()) if folder.exists() else True


@pytest.fixture
def out(tmp_path):
    """The folder that the ``finetune`` fixture writes below."""
    return tmp_path / "made"


@pytest.fixture
def checkpoint(finetune, tmp_path):
    """A checkpoint of the tiny model."""
    assert finetune("--quiet").code == 0
    return tmp_path / "out"


def test_the_checkpoint_holds_what_its_contract_says(finetune, tmp_path, model_folder):
    run = finetune("--freeze", 2, "--json")
    assert run.code == 0
    folder = tmp_path / "out"
    assert tree(folder) == {
        "model/config.json", "model/model.safetensors", "preprocessing/preprocess.json",
        "preprocessing/tokenizer.json", "examples.parquet", "splits.parquet", "metrics.json",
        "run.yaml", "manifest.json", "measurements.json", "report.html", "seal.json",
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
    assert measured["seconds"].keys() == {"prepare", "train", "evaluate"}
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


def test_an_interrupt_leaves_nothing(finetune, tmp_path, monkeypatch):
    for name in ("train", "write_checkpoint"):
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, name, raise_interrupt)
            assert finetune(out="made/out").code == 130
        assert is_clean(tmp_path / "made")


def test_an_interrupt_while_writing_leaves_nothing(finetune, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.report, "render", raise_interrupt)
    assert finetune(out="made/out").code == 130
    assert is_clean(tmp_path / "made")


def raise_interrupt(*_arguments, **_options):
    raise KeyboardInterrupt


def test_the_report_shows_curves_classes_and_errors_but_no_certify_text(finetune, tmp_path):
    assert finetune("--epochs", 2).code == 0
    made = Checkpoint.open(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert made.artifact.manifest_sha256 in page
    assert page.count("<svg") >= 2
    for words in ("of test rows right", "Worst errors", "certify", "macro-F1", "sports"):
        assert words in page
    examples = made.examples()
    shown = [
        split
        for split in ("validation", "test")
        for text in examples.split(split).texts
        if text in page
    ]
    assert shown
    for split in ("train", "calibrate", "search", "certify"):
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


def test_out_of_memory_is_told_and_recorded_and_the_run_ends_well(finetune, tmp_path, monkeypatch):
    forward = torch.nn.Embedding.forward

    def limited(self, ids):
        if (
            torch.is_grad_enabled() is False
            and ids.dim() == 2
            and len(ids) > 8
            and self.num_embeddings > 40
        ):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", limited)
    run = finetune("--json")
    assert run.code == 0
    assert "warning: out of memory: the batch of 16 rows is halved to 8" in run.err
    assert run.json["batch_size"] == 8
    measured = json.loads((tmp_path / "out" / "measurements.json").read_bytes())
    assert measured["batch_size"] == 8


# Going on from a checkpoint.


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
    assert "is a edgewright.bundle, and a checkpoint is wanted" in run.err


# What is refused. Each case: how the files are spoilt, the options, the exit code, the words.


def csv_of(tmp_path, rows, header=("text", "label")):
    return write_csv(tmp_path / "rows.csv", rows, header)


GOOD = make_rows(30)
SOUND_LINE = b'{"text": "a", "label": "x"}\n'
BAD_DATA = {
    "missing file": (lambda tmp: tmp / "none.csv", ["none.csv", "no such file"]),
    "empty file": (lambda tmp: touch(tmp / "rows.csv", b""), ["rows.csv"]),
    "only a header": (lambda tmp: csv_of(tmp, []), ["rows.csv", "no rows"]),
    "no label column": (
        lambda tmp: csv_of(tmp, GOOD, ("text", "mark")),
        ["no label column", "'mark'", "--label-column"],
    ),
    "no text column": (lambda tmp: csv_of(tmp, GOOD, ("words", "label")), ["no text column"]),
    "text pairs": (
        lambda tmp: csv_of(tmp, [("a", "b", "x")], ("sentence1", "sentence2", "label")),
        ["Text pairs (sentence1, sentence2) are not supported"],
    ),
    "one class": (
        lambda tmp: csv_of(tmp, [(text, "x") for text, _ in GOOD]), ["every row has the label 'x'"],
    ),
    "empty texts": (
        lambda tmp: csv_of(tmp, [*GOOD, ("  ", "food")]), ["row 31", "column 'text'", "empty text"],
    ),
    "empty label": (lambda tmp: csv_of(tmp, [*GOOD, ("goal", "")]), ["row 31", "column 'label'"]),
    "numbers for texts": (
        lambda tmp: touch(tmp / "r.jsonl", SOUND_LINE + b'{"text": 3, "label": "y"}\n'),
        ["r.jsonl", "row 2", "expected a string"],
    ),
    "broken jsonl": (
        lambda tmp: touch(tmp / "r.jsonl", SOUND_LINE + b'{"text": \n'), ["r.jsonl", "line 2"],
    ),
    "not utf-8": (lambda tmp: touch(tmp / "r.csv", b"text,label\n\xff,x\n"), ["r.csv", "UTF-8"]),
    "unknown ending": (lambda tmp: touch(tmp / "rows.doc", b"x"), ["rows.doc"]),
}  # fmt: skip


def touch(path, content: bytes):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_used_is_refused_by_place(finetune, tmp_path, case):
    spoil, words = BAD_DATA[case]
    run = finetune(data=spoil(tmp_path), out="made/out")
    assert run.code == 2, run.err
    assert_refused(run, tmp_path, words)


BAD_OPTIONS = {
    "no data": ({"data": None}, [], 2, ["DATA is missing"]),
    "zero epochs": ({}, ["--epochs", 0], 2, ["--epochs is 0"]),
    "negative rate": ({}, ["--lr", -1], 2, ["--lr is -1.0"]),
    "several faults": ({}, ["--lr", 0, "--patience", 0], 2, ["--lr is 0.0", "--patience is 0"]),
    "shares": ({}, ["--splits", "50/8/4/4/20/8"], 2, ["50/8/4/4/20/8", "sum to 100"]),
    "too many blocks": ({}, ["--freeze", 9], 2, ["--freeze 9", "4 blocks"]),
    "no depth": ({}, ["--freeze", "half"], 2, ["--freeze is 'half'"]),
    "not a number": ({}, ["--epochs", "three"], 2, ["--epochs", "three"]),
    "unknown option": ({}, ["--epoch", 1], 2, ["--epoch"]),
    "missing model": ({"model": None}, ["--model", "./none"], 2, ["./none: no such folder"]),
    "missing checkpoint": (
        {"model": None, "data": None}, ["--from", "./none"], 4, ["no checkpoint at none"],
    ),
    "missing addition": ({}, ["--add", "none.csv"], 2, ["none.csv"]),
    "missing test file": ({}, ["--test", "none.csv"], 2, ["none.csv"]),
    "missing config": ({}, ["--config", "none.yaml"], 2, ["none.yaml"]),
    "fp16 on a cpu": ({}, ["--device", "cpu", "--precision", "fp16"], 2, ["fp16 needs a CUDA GPU"]),
    "too short": ({}, ["--max-length", 2], 2, ["max_length is 2"]),
    "diverges": ({}, ["--lr", 1e30, "--epochs", 3, "--freeze", 0], 2, ["training diverged"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_options_that_cannot_work_are_refused_by_name(finetune, tmp_path, monkeypatch, case):
    places, options, code, words = BAD_OPTIONS[case]
    monkeypatch.chdir(tmp_path)
    run = finetune(*options, out="made/out", **places)
    assert run.code == code, run.err
    assert_refused(run, tmp_path, words)


def test_a_gpu_that_is_not_there_is_an_error(finetune, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = finetune("--device", "cuda", out="made/out")
    assert run.code == 5
    assert_refused(run, tmp_path, ["--device cuda", "--device cpu"])


def test_a_model_with_shared_layers_is_refused_unless_all_of_it_trains(finetune, tmp_path):
    albert = tmp_path / "albert"
    tiny_classifier("albert").save_pretrained(albert)
    save_tokenizer(albert)
    run = finetune(model=albert, out="made/out")
    assert run.code == 2
    assert_refused(run, tmp_path, ["AlbertForSequenceClassification", "--freeze 0"])
    assert finetune("--freeze", 0, model=albert).code == 0


def test_a_tokenizer_without_a_fast_form_is_refused_by_name(
    finetune, tmp_path, model_folder, monkeypatch
):
    folder = shutil.copytree(model_folder, tmp_path / "slow")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    slow = BertTokenizer(str(folder / "vocab.txt"))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: slow)
    run = finetune(model=folder, out="made/out")
    assert run.code == 2
    assert_refused(run, tmp_path, ["BertTokenizer", "no fast form"])


def test_inputs_that_the_model_does_not_take_are_refused(finetune, tmp_path):
    folder = tmp_path / "distil"
    tiny_classifier("distilbert").save_pretrained(folder)
    save_tokenizer(folder)  # gives token_type_ids, as BERT wants
    run = finetune(model=folder, out="made/out")
    assert run.code == 2
    assert_refused(run, tmp_path, ["token_type_ids", "DistilBertForSequenceClassification"])
    save_tokenizer(folder, model_input_names=["input_ids", "attention_mask"])
    assert finetune(model=folder).code == 0


def test_a_target_below_a_file_is_refused_before_any_work(finetune, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.Task, "prepare", lambda *_: pytest.fail("work was done"))
    (tmp_path / "file").write_text("")
    run = finetune(out="file/out")
    assert run.code == 2
    assert "cannot write below" in run.err


def test_a_folder_that_is_no_artifact_is_not_deleted(finetune, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert finetune("--overwrite").code == 2
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def assert_refused(run, tmp_path, words):
    said = " ".join(run.err.split())
    for each in words:
        assert each in said
    assert "Traceback" not in run.err
    assert "bug in edgewright" not in run.err
    assert run.out == ""
    assert is_clean(tmp_path / "made")


def test_help_ends_with_examples_of_options_that_exist(edgewright):
    run = edgewright("finetune", "--help")
    assert run.code == 0
    examples = run.out.partition("Examples:")[2]
    assert examples.count("edgewright finetune") >= 3
    for word in examples.split():
        if word.startswith("--"):
            assert word in run.out.partition("Examples:")[0]
