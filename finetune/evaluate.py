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
from edgewright.errors import ConfigError
from edgewright.examples import Image
from edgewright.finetune.batches import Rows, evaluation_batches, to_device
from edgewright.finetune.memory import OUT_OF_MEMORY, is_out_of_memory

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
    model: nn.Module, rows: Rows, device: torch.device, batch_rows: int = _BATCH_ROWS
) -> Logits:
    """The model's fp32 logits of every row, in eval mode and without autograd.

    Batches run from short rows to long ones; where one does not fit in memory, all are halved.

    Returns:
        (rows, classes); the class count is 0 when there are no rows.

    Raises:
        ConfigError: not even one row fits in memory.
    """
    model.eval()
    batches = evaluation_batches(rows.lengths, batch_rows)
    try:
        with torch.no_grad():
            answers = [_answer(model, rows, batch, device) for batch in batches]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if batch_rows == 1:
            raise ConfigError(OUT_OF_MEMORY) from error
    else:
        if not answers:
            return np.empty((0, 0), np.float32)
        logits = np.concatenate(answers)
        return logits[np.argsort(np.concatenate(batches))]
    return predict_logits(model, rows, device, batch_rows // 2)


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


def _answer(model: nn.Module, rows: Rows, batch: Any, device: torch.device) -> Logits:
    logits: Logits = model(**to_device(rows.inputs(batch), device)).logits.float().cpu().numpy()
    return logits
