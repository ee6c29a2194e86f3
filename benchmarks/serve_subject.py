"""What is served: a bundle of MiniLM fine-tuned on BBC News, and texts of so many words to ask."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import write_payloads
from benchmarks.serve_protocol import Protocol
from benchmarks.subject import run_edgewright, subjects
from demo import bbc_news
from edgewright.backends import get_backend, softmax
from edgewright.bundle import Bundle, Variant
from edgewright.repository import Repository

TITLE: Final = "MiniLM-L6 on BBC News, 128 tokens"
# One text and several, of 12 words and of 80: what is asked for below.
_WORKLOAD: Final = "1x16,16x16,1x104,16x104"
_MAX_DROP: Final = "0.015"
_TEXTS: Final = 512
_CHECKED: Final = 16  # of each length
_SEED: Final = 0


@dataclass(frozen=True)
class Subject:
    """One file of a bundle, and the repository that edgewright serves it from."""

    bundle: Bundle
    repository: Path

    @property
    def variant(self) -> Variant:
        """The one that edgewright chose, and that all serve."""
        return self.bundle.chosen

    @property
    def file(self) -> Path:
        """ONNX."""
        return self.bundle.path / self.variant.file

    @property
    def preprocessing(self) -> Path:
        """tokenizer.json and preprocess.json."""
        return self.bundle.path / "preprocessing"

    @property
    def labels(self) -> Sequence[str]:
        """In the order of the outputs."""
        return self.bundle.labels


def prepare(folder: Path, bundle: Path | None = None, *, quick: bool = False) -> Subject:
    """The subject, made in ``folder`` where it is not there: some minutes.

    Args:
        bundle: one that is there, in place of one that is made.

    Raises:
        RunFailedError: a command failed.
    """
    if bundle is None:
        bundle = folder / "bundle"
        if not bundle.exists():
            checkpoint = folder / "checkpoint"
            text = subjects()["text"]
            if not checkpoint.exists():
                text.finetune(folder, quick=quick)
            asked = ["optimize", str(checkpoint), "-o", str(bundle), "--backend", "onnxruntime"]
            budget = ["--max-drop", _MAX_DROP, "--workload", _WORKLOAD]
            run_edgewright(text.python(), [*asked, *budget])
    opened = Bundle.open(bundle)
    repository = folder / "repositories" / opened.artifact.manifest_sha256[:16]
    if not repository.exists():
        Repository(repository).publish(bundle, "texts")
    return Subject(opened, repository)


def texts_of(words: int) -> list[str]:
    """Beginnings of as many different articles, cut after so many words."""
    articles = sorted({" ".join(text.split()[:words]) for text, _ in bbc_news()})
    random.Random(_SEED).shuffle(articles)
    return [each for each in articles if len(each.split()) == words][:_TEXTS]


def payloads_of(protocol: Protocol, words: int, folder: Path) -> Path:
    """A file for the load generator."""
    folder.mkdir(parents=True, exist_ok=True)
    name = protocol.path.strip("/").replace("/", "-")
    bodies = [protocol.encode(each) for each in texts_of(words)]
    return write_payloads(folder / f"{name}-{words}", bodies)


@dataclass(frozen=True)
class Questions:
    """Texts whose scores are known: each was computed alone, by edgewright's own code."""

    texts: Sequence[str]
    scores: NDArray[np.float64]  # (texts, labels)

    @classmethod
    def of(cls, subject: Subject, words: Sequence[int]) -> Questions:
        """Some of every length."""
        texts = [each for count in words for each in texts_of(count)[:_CHECKED]]
        variant, preprocessor = subject.variant, subject.bundle.preprocessor()
        session = get_backend(variant.backend).load(
            subject.file, threads=1, options=variant.session_options
        )
        alone = [preprocessor.pad([row]).arrays for row in preprocessor.encode(texts)]
        logits = [next(iter(session.run(arrays).values())) for arrays in alone]
        return cls(texts, softmax(np.concatenate(logits)).astype(np.float64))
