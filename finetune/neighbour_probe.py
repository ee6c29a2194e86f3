"""Nearest neighbours: whether rows that were alike for the old encoder still are for the new one.

The probe for any encoder, whatever it was trained for: it needs no head and no old data.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewright.finetune.batches import Rows, RowSubset
from edgewright.finetune.calibration import output_layer
from edgewright.finetune.evaluate import predict_logits
from edgewright.finetune.interpolation import encoder_of
from edgewright.finetune.probe import Reading
from edgewright.finetune.survey import pool

Embeddings = NDArray[np.float32]  # (rows, dimensions), each of length 1

MOST_ROWS: Final = 128  # the error of a mean share over so many is about .02
_LEAST_ROWS: Final = 30
_NEIGHBOURS: Final = 10


@dataclass(frozen=True, eq=False)
class NeighbourProbe:
    """The share of each row's nearest neighbours that are the same as before training."""

    sample: Rows
    reason: str
    neighbours: NDArray[np.int64]  # (rows, k), of the old embeddings
    before: Reading
    device: torch.device
    name: str = "nearest neighbours"
    metric: str = "neighbours_kept"

    @classmethod
    def of(
        cls, model: Any, validation: Rows, train: Rows, device: torch.device, *, seed: int, why: str
    ) -> NeighbourProbe:
        """Embed a sample of ``validation``, or of ``train`` where that is too small.

        Args:
            model: with its old weights.
            validation: rows that training does not fit.
            train: rows that it does.
            device: where the model is.
            seed: of the sample.
            why: no other probe was chosen.
        """
        enough = len(validation.labels) >= _LEAST_ROWS
        sample = RowSubset.draw(validation if enough else train, MOST_ROWS, seed=seed)
        embeddings = embed(model, sample, device)
        nearest = nearest_neighbours(embeddings, _k(len(sample.labels)))
        split = "validation" if enough else "train (validation is too small)"
        reason = (
            f"the {nearest.shape[1]} nearest neighbours of each of {len(sample.labels)} rows of "
            f"{split}, among those rows, by the mean of the last hidden states; {why}"
        )
        before = _reading(nearest, nearest, embeddings, sample.labels)
        return cls(sample, reason, nearest, before, device)

    @property
    def rows(self) -> int:
        """How many rows are embedded."""
        return len(self.sample.labels)

    def read(self, model: Any) -> Reading:
        """Neighbours kept, and how well the neighbours tell the class."""
        embeddings = embed(model, self.sample, self.device)
        nearest = nearest_neighbours(embeddings, self.neighbours.shape[1])
        return _reading(self.neighbours, nearest, embeddings, self.sample.labels)


def embed(model: Any, rows: Rows, device: torch.device) -> Embeddings:
    """The encoder's last hidden states, averaged over the tokens (or places) of each row."""
    vectors = predict_logits(_Embedder(model), rows, device)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Embeddings = vectors / np.maximum(lengths, 1e-12)
    return unit


def nearest_neighbours(embeddings: Embeddings, k: int) -> NDArray[np.int64]:
    """The ``k`` other rows of largest cosine, nearest first, shape (rows, k)."""
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def neighbours_kept(before: NDArray[np.int64], after: NDArray[np.int64]) -> float:
    """Mean share of each row's neighbours that it has in both, arrays of shape (rows, k)."""
    same = (before[:, :, None] == after[:, None, :]).any(axis=2)
    return float(same.mean())


def _reading(
    before: NDArray[np.int64],
    after: NDArray[np.int64],
    embeddings: Embeddings,
    labels: NDArray[np.int64],
) -> Reading:
    return Reading(
        {
            "neighbours_kept": neighbours_kept(before, after),
            "knn_accuracy": _knn_accuracy(after, embeddings, labels),
        }
    )


def _knn_accuracy(
    nearest: NDArray[np.int64], embeddings: Embeddings, labels: NDArray[np.int64]
) -> float:
    """Share of rows whose neighbours, weighted by their cosines, vote for the right class."""
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    places = np.arange(len(labels))[:, None]
    cosines = (embeddings[:, None, :] * embeddings[nearest]).sum(axis=2)
    np.add.at(votes, (places, labels[nearest]), cosines + 1)  # a cosine may be below 0
    return float((votes.argmax(axis=1) == labels).mean())


def _k(rows: int) -> int:
    return max(1, min(_NEIGHBOURS, (rows - 1) // 3))


class _Embedder(nn.Module):
    """Answers with embeddings in place of logits, so that they are computed as logits are."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> Any:
        encoder = encoder_of(self.model)
        if encoder is None:
            return SimpleNamespace(logits=_head_input(self.model, inputs))
        hidden = encoder(**inputs).last_hidden_state
        return SimpleNamespace(logits=pool(hidden, inputs.get("attention_mask")))


def _head_input(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the layer that gives the logits is given; the logits where there is no such layer."""
    layer, logits = output_layer(model, inputs)
    if layer is None:
        return logits
    given: list[torch.Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _layer, values: given.append(values[0]))
    try:
        model(**inputs)
    finally:
        hook.remove()
    return given[-1].flatten(1)
