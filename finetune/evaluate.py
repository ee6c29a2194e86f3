"""What a model answers, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewright import metrics
from edgewright.examples import Image
from edgewright.finetune.batches import Indices, Rows, evaluation_batches, to_device
from edgewright.finetune.memory import in_pieces
from edgewright.finetune.processes import ALONE, Processes

Logits = NDArray[np.float32]  # (rows, classes)

_BATCH_ROWS: Final = 32


@dataclass(frozen=True)
class Scores:
    """A model on one split: mean cross-entropy in nats, accuracy, macro-F1, over ``n`` rows."""

    n: int
    correct: int
    loss: float
    accuracy: float
    macro_f1: float


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers on one split; ``labels`` (rows,), ``logits`` (rows, classes)."""

    split: str
    contents: Sequence[str] | Sequence[Image]
    labels: NDArray[np.int64]
    logits: Logits


def predict_logits(
    model: nn.Module,
    rows: Rows,
    device: torch.device,
    batch_rows: int = _BATCH_ROWS,
    *,
    processes: Processes = ALONE,
) -> Logits:
    """The model's fp32 logits of every row, in eval mode and without autograd.

    Batches run from short rows to long ones; one that does not fit in memory is halved.

    Args:
        model: as it is, in every process.
        rows: what it answers.
        device: where the model is.
        batch_rows: of one pass.
        processes: that share the batches; each of them gets all answers.

    Returns:
        (rows, classes); the class count is 0 when there are no rows.

    Raises:
        ConfigError: not even one row fits in memory.
    """

    def answer(batch: Indices) -> Logits:
        inputs = to_device(rows.inputs(batch), device)
        logits: Logits = model(**inputs).logits.float().cpu().numpy()
        return logits

    model.eval()
    batches = evaluation_batches(rows.lengths, batch_rows)
    with torch.no_grad():
        own = [np.concatenate(in_pieces(answer, batch)) for batch in batches[processes.mine]]
    answers = processes.collect(own)
    if not answers:
        return np.empty((0, 0), np.float32)
    return np.concatenate(answers)[np.argsort(np.concatenate(batches))]


def score(labels: NDArray[np.int64], logits: Logits) -> Scores | None:
    """The scores of ``logits``, shape (rows, classes), on ``labels``; None without rows."""
    if not len(labels):
        return None
    predicted = logits.argmax(axis=1)
    return Scores(
        n=len(labels),
        correct=int((predicted == labels).sum()),
        loss=float(cross_entropy(labels, logits).mean()),
        accuracy=metrics.accuracy(labels, predicted),
        macro_f1=metrics.macro_f1(labels, predicted, logits.shape[1]),
    )


def cross_entropy(
    labels: NDArray[np.int64], logits: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """-log of the probability of each row's label, in nats, shape (rows,)."""
    return -log_probabilities(logits)[np.arange(len(labels)), labels]


def log_probabilities(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Log-softmax over the classes, shape (rows, classes)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    normalised: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised
