"""A tiny model and data on disk, and the command line run in this process."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from image_data import digit_folder
from tiny_models import bert_config, make_rows, save_tokenizer, write_csv
from tiny_vision import USER_CODE, save_vision_folder

from edgewright import cli


@pytest.fixture(autouse=True)
def _one_thread():
    """Other processes may share the cores; the thread count is part of the result."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A BERT of four blocks without a classification head, with random weights."""
    folder = tmp_path_factory.mktemp("model") / "tiny-bert"
    torch.manual_seed(0)
    transformers.BertModel(bert_config()).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def data_file(tmp_path_factory) -> Path:
    """150 rows of three classes."""
    return write_csv(tmp_path_factory.mktemp("data") / "rows.csv", make_rows(150))


@dataclass
class Run:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def edgewright(capfd, monkeypatch):
    """Runs the command line in this process."""
    monkeypatch.delenv("EDGEWRIGHT_DEBUG", raising=False)

    def run(*arguments: object) -> Run:
        capfd.readouterr()
        code = cli.run([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
        captured = capfd.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture
def finetune(edgewright, model_folder, data_file, tmp_path):
    """Runs ``edgewright finetune`` with the tiny model, quickly; options given win."""

    def run(
        *options: object,
        data: Path | None = data_file,
        model: Path | None = model_folder,
        out="out",
    ):
        source = [] if data is None else [data]
        chosen = [] if model is None else ["--model", model]
        quick = ["--epochs", 1, "--threads", 1, "--max-length", 32]
        return edgewright("finetune", *source, *chosen, *quick, "-o", tmp_path / out, *options)

    return run


@pytest.fixture
def checkpoint(finetune, tmp_path):
    """A checkpoint of the tiny model."""
    assert finetune("--quiet").code == 0
    return tmp_path / "out"


@pytest.fixture(scope="session")
def vision_folder(tmp_path_factory) -> Path:
    """A ResNet of four blocks, with random weights."""
    return save_vision_folder(tmp_path_factory.mktemp("vision") / "resnet")


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """150 pictures of ten classes."""
    return digit_folder(tmp_path_factory.mktemp("data") / "digits", range(150))


@pytest.fixture
def users_code(tmp_path, monkeypatch):
    """A module of the user's, ``users_code``, that this process and others can import."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "users_code.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    sys.modules.pop("users_code", None)


@pytest.fixture
def finetune_images(edgewright, digits_folder, vision_folder, tmp_path):
    """Runs ``edgewright finetune`` on pictures, quickly; options given win."""

    def run(*options, data=digits_folder, model=vision_folder, out="out"):
        source = [] if data is None else [data]
        chosen = [] if model is None else ["--model", model]
        quick = ["--epochs", 1, "--threads", 1, "--device", "cpu", "--precision", "fp32"]
        quick += ["--cache-dir", tmp_path / "cache"]
        return edgewright("finetune", *source, *chosen, *quick, "-o", tmp_path / out, *options)

    return run
