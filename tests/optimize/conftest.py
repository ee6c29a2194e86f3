"""A small real checkpoint: a BERT of two layers that has learned to tell three kinds of sentence.

It is written in the checkpoint's layout and sealed, without finetune's code: stages meet in
artifacts alone. Some sentences are ambiguous, so the model errs on a few of them, as models do.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_sentences import COMMON, LABELS, WORDS, sentences

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from edgewright.checkpoint import CHECKPOINT, CONFIG_FILE, METRICS_FILE, MODEL_FOLDER, Checkpoint
from edgewright.checkpoint import PREPROCESSING_FOLDER as CHECKPOINT_PREPROCESSING
from edgewright.examples import Examples, example_id
from edgewright.manifest import canonical_json, new_folder, seal
from edgewright.preprocess import TextPreprocessor

SPLIT_ROWS = {
    "train": 240,
    "validation": 40,
    "calibrate": 32,
    "search": 90,
    "certify": 600,
    "test": 60,
}
MAX_LENGTH = 24


def make_examples(split_rows: dict[str, int], seed: int = 0) -> Examples:
    """Examples with the given number of rows in each split, every row a group of its own."""
    texts, labels = sentences(sum(split_rows.values()), seed)
    ids = [example_id(text) for text in texts]
    splits = [name for name, rows in split_rows.items() for _ in range(rows)]
    return Examples(ids, texts, labels, splits, groups=ids, label_names=LABELS)


def train_model(folder: Path, examples: Examples) -> None:
    """Write model/ and preprocessing/: a word-level tokenizer and a BERT trained for seconds."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *COMMON.split(),
        *" ".join(WORDS.values()).split(),
    ]
    preprocessor = _preprocessor(folder / "tokenizer", vocabulary)
    preprocessor.save(folder / CHECKPOINT_PREPROCESSING)
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=MAX_LENGTH,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={name: index for index, name in enumerate(LABELS)},
        )
    )
    train = examples.split("train")
    arrays = preprocessor(train.texts).arrays
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    labels = torch.from_numpy(train.labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(40):
        rows = torch.randint(len(labels), (64,))
        batch = {name: tensor[rows] for name, tensor in inputs.items()}
        loss = model(**batch, labels=labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    model.save_pretrained(folder / MODEL_FOLDER, safe_serialization=True)


def _preprocessor(folder: Path, vocabulary: list[str]) -> TextPreprocessor:
    from transformers import BertTokenizerFast

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=MAX_LENGTH)
    tokenizer.save_pretrained(folder)
    return TextPreprocessor.from_pretrained(str(folder), max_length=MAX_LENGTH)


def write_checkpoint(target: Path, model: Path, examples: Examples) -> Path:
    """Seal a checkpoint at ``target`` from a folder that ``train_model`` filled."""
    with new_folder(target) as folder:
        for name in (MODEL_FOLDER, CHECKPOINT_PREPROCESSING):
            shutil.copytree(model / name, folder / name)
        examples.save(folder)
        (folder / METRICS_FILE).write_bytes(canonical_json({"epochs": []}))
        (folder / CONFIG_FILE).write_text("seed: 0\n")
        body: dict[str, Any] = {
            "task": "text-classification",
            "labels": list(LABELS),
            "config": {"seed": 0},
            "seed": 0,
            "packages": {},
            "made_from": {},
            "splits": {},
            "test": {},
        }
        seal(folder, CHECKPOINT, body, {"report.html": lambda _: b"<!doctype html>"})
    return target


CheckpointMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def trained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/ and preprocessing/ of the small BERT."""
    folder = tmp_path_factory.mktemp("trained")
    train_model(folder, make_examples(SPLIT_ROWS))
    return folder


@pytest.fixture(scope="session")
def checkpoint_path(trained_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed checkpoint; do not write into it."""
    target = tmp_path_factory.mktemp("checkpoints") / "checkpoint"
    return write_checkpoint(target, trained_model, make_examples(SPLIT_ROWS))


@pytest.fixture(scope="session")
def checkpoint(checkpoint_path: Path) -> Checkpoint:
    """The small checkpoint, verified."""
    return Checkpoint.open(checkpoint_path)


@pytest.fixture
def make_checkpoint(trained_model: Path, tmp_path: Path) -> CheckpointMaker:
    """Seal a checkpoint of one's own, with other numbers of rows in its splits."""

    def make(name: str = "checkpoint", **rows: int) -> Path:
        examples = make_examples({**SPLIT_ROWS, **rows})
        return write_checkpoint(tmp_path / name, trained_model, examples)

    return make


@pytest.fixture(scope="session")
def seal_model() -> CheckpointMaker:
    """Seal a folder that ``trained_model`` is a copy of, with the small checkpoint's examples."""
    return lambda target, model: write_checkpoint(target, model, make_examples(SPLIT_ROWS))
