"""One run of one contender: what it is told, and what it tells."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

OUTCOME_FILE: Final = "outcome.json"


@dataclass(frozen=True)
class Training:
    """What every contender of one benchmark is told alike.

    ``precision`` is "fp32", "bf16", or "auto": then each tool takes its own default.
    """

    model: str  # folder in transformers' layout
    data: str  # csv with text, label, split (train or validation)
    heldout: str  # csv with text, label; scored after the run, outside its time
    epochs: int
    batch_size: int
    max_length: int  # tokens
    lr: float
    frozen: int  # encoder blocks held, for the contenders that hold any
    threads: int
    precision: str


@dataclass(frozen=True)
class Job:
    """One run."""

    training: Training
    seed: int
    out: str  # an empty folder: for the trained model and ``OUTCOME_FILE``
    started: float  # time.monotonic() when the process was started

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)

    @classmethod
    def read(cls, file: Path) -> Job:
        """The inverse of ``to_json``, from a file."""
        record = json.loads(file.read_bytes())
        return cls(**{**record, "training": Training(**record["training"])})

    @property
    def folder(self) -> Path:
        """Where the run leaves what it makes."""
        return Path(self.out)

    def rows(self, split: str) -> tuple[list[str], list[str]]:
        """Texts and labels of "train", "validation" or "heldout"."""
        if split == "heldout":
            return read_rows(Path(self.training.heldout))
        return read_rows(Path(self.training.data), split)


@dataclass(frozen=True)
class Outcome:
    """What one run took and what its model answers.

    Attributes:
        train_s: from loaded model and tokenised rows to final weights, validation included.
        command_s: from the start of the process to the model on disk.
        phases: seconds of what ``train_s`` and ``command_s`` consist of, where that is known.
        predictions: one label a held-out row, in order.
        notes: what else there is to know of the run.
    """

    train_s: float
    command_s: float
    phases: Mapping[str, float]
    predictions: Sequence[str]
    notes: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Leave it for the process that started the run."""
        (folder / OUTCOME_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """The inverse of ``write``."""
        record = json.loads((folder / OUTCOME_FILE).read_bytes())
        return cls(**{each.name: record[each.name] for each in fields(cls)})


def write_rows(file: Path, rows: Sequence[tuple[str, ...]], columns: Sequence[str]) -> None:
    """A csv file."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([columns, *rows])


def read_rows(file: Path, split: str | None = None) -> tuple[list[str], list[str]]:
    """Texts and labels of a file that ``write_rows`` wrote, those of one split or all."""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if split is None or row["split"] == split]
    return [row["text"] for row in rows], [row["label"] for row in rows]
