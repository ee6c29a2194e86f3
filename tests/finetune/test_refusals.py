"""What ``edgewright finetune`` refuses, in which words, and that nothing is left behind."""

import resource
import shutil
import subprocess
import sys

import pytest
import torch
from tiny_models import make_rows, save_tokenizer, tiny_classifier, write_csv
from transformers import BertTokenizer

from edgewright.finetune import pipeline


def is_clean(folder) -> bool:
    """Neither a target nor a staging folder is left."""
    return not list(folder.iterdir()) if folder.exists() else True


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
    "several labels a row": (
        lambda tmp: touch(tmp / "r.jsonl", SOUND_LINE + b'{"text": "b", "label": ["x", "y"]}\n'),
        ["r.jsonl", "row 2", "multi-label classification is not supported"],
    ),
    "measures for labels": (
        lambda tmp: csv_of(tmp, [(text, f"{i / 7:.3f}") for i, (text, _) in enumerate(GOOD)]),
        ["row 2", "regression is not supported"],
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
    "two label columns": (
        {}, ["--label-column", "toxic", "--label-column", "rude"], 2,
        ["--label-column is given 2 times (toxic, rude)", "multi-label"],
    ),
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


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from edgewright import cli
sys.exit(cli.run(sys.argv[1:]))
"""


def test_help_and_refusals_need_no_torch_and_training_says_how_to_install_it(tmp_path):
    def run(*options):
        command = [sys.executable, "-c", WITHOUT_TORCH, "finetune", *options]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert run("--help").returncode == 0
    assert "--lr is 0.0" in run("rows.csv", "-o", "made/out", "--lr", "0").stderr
    trained = run("rows.csv", "-o", "made/out")
    assert trained.returncode == 5
    assert trained.stderr == "error: finetune needs torch; pip install 'edgewright[train]'\n"
    assert is_clean(tmp_path / "made")


def test_an_interrupt_before_training_leaves_nothing(finetune, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "audit_task", raise_interrupt)
    assert finetune(out="made/out").code == 130
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["train", "write_checkpoint"])
def test_an_interrupt_leaves_what_resume_goes_on_from(finetune, tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, name, raise_interrupt)
        run = finetune(out="made/out")
    assert run.code == 130
    told, _, said = run.err.splitlines()[-3:]
    assert "`--resume` goes on from" in told
    assert said == "interrupted"  # and not that nothing was written
    assert [each.name for each in (tmp_path / "made").iterdir()] == ["out.unfinished"]
    assert finetune("--resume", out="made/out").code == 0
    assert [each.name for each in (tmp_path / "made").iterdir()] == ["out"]


def test_an_interrupt_while_writing_leaves_no_half_of_a_checkpoint(finetune, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.report, "render", raise_interrupt)
    assert finetune(out="made/out").code == 130
    assert [each.name for each in (tmp_path / "made").iterdir()] == ["out.unfinished"]


def test_weights_that_the_disk_does_not_take_are_no_bug(finetune, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_checkpoint", on_a_full_disk(pipeline.write_checkpoint))
        run = finetune(out="made/out")
    told, said = run.err.splitlines()[-2:]
    assert "`--resume` goes on from" in told
    assert said.startswith(f"error: {tmp_path / 'made' / 'out'}: the weights cannot be written (")
    assert "File too large" in said
    assert said.endswith("); make room, or write elsewhere")
    assert [each.name for each in (tmp_path / "made").iterdir()] == ["out.unfinished"]
    assert finetune("--resume", out="made/out").code == 0


def on_a_full_disk(write):
    """``write`` where no file grows beyond a page, which fails as it does where no room is left."""

    def limited(*arguments, **options):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            return write(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def raise_interrupt(*_arguments, **_options):
    raise KeyboardInterrupt
