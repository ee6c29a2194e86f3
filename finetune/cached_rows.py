"""Rows that come with what crosses a cut, read from a store; and several sets of rows as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgewright.finetune.activation_store import ActivationStore, Array
from edgewright.finetune.batches import ChangingRows, Indices, Rows, evaluation_batches
from edgewright.finetune.cut import Cut
from edgewright.finetune.survey import pool


class KeyedRows(Rows, Protocol):
    """Rows that can be known again."""

    @property
    def keys(self) -> Sequence[str]:
        """One a row; rows of the same inputs have the same key."""
        ...


@dataclass(frozen=True, eq=False)
class CachedRows:
    """Rows whose inputs come with their activations."""

    rows: KeyedRows
    store: ActivationStore
    cut: Cut

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, shape (rows,)."""
        return self.rows.labels

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, shape (rows,)."""
        return self.rows.lengths

    def for_epoch(self, epoch: int) -> CachedRows:
        """The same rows as training sees them in this epoch, from 1."""
        if not isinstance(self.rows, ChangingRows):
            return self
        return replace(self, rows=self.rows.for_epoch(epoch))

    def inputs(self, indices: Indices) -> dict[str, torch.Tensor]:
        """The inputs of the rows, and ``activations``, fp32, padded with zeros as they are.

        Inputs that the cut has blanks for are left out, so that no image is decoded.
        """
        inputs = {} if self.cut.blanks else self.rows.inputs(indices)
        arrays = [self.store.read(self.rows.keys[index]) for index in indices]
        return {**inputs, "activations": self._batch(arrays, inputs)}

    def means(self, indices: Indices) -> NDArray[np.float32]:
        """The mean of a row's activations over its tokens, or an image's places: (rows, hidden)."""
        arrays = [self.store.read(self.rows.keys[index]).astype(np.float32) for index in indices]
        return np.concatenate([pool(torch.from_numpy(each)[None], None).numpy() for each in arrays])

    def _batch(self, arrays: list[Array], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if not self.cut.by_token:
            return torch.from_numpy(np.stack(arrays)).float()
        mask = inputs["attention_mask"].numpy()
        padded = np.zeros((*mask.shape, *arrays[0].shape[1:]), arrays[0].dtype)
        for row, (array, first) in enumerate(zip(arrays, mask.argmax(axis=1), strict=True)):
            padded[row, first : first + len(array)] = array
        return torch.from_numpy(padded).float()


def row_arrays(
    cut: Cut, activations: torch.Tensor, inputs: Mapping[str, torch.Tensor], dtype: str
) -> Iterator[Array]:
    """What a store keeps of a batch: an array a row, without padding, of its own memory."""
    values = activations.float().cpu().numpy().astype(dtype)
    if not cut.by_token:
        yield from (row.copy() for row in values)
        return
    masks = inputs["attention_mask"].bool().cpu().numpy()
    yield from (row[mask] for row, mask in zip(values, masks, strict=True))


@dataclass(frozen=True, eq=False)
class RowSets:
    """Several sets of rows under one numbering, in the order given.

    An epoch reads as many rows as the first ``epoch_rows`` are; those behind take turns with them.
    """

    sets: Sequence[KeyedRows]
    keys: list[str]
    lengths: NDArray[np.int64]
    epoch_rows: int

    @classmethod
    def of(cls, sets: Sequence[KeyedRows], views: Sequence[KeyedRows] = ()) -> RowSets:
        """Of at least one row; ``views`` take turns with one of ``sets``."""
        present = [rows for rows in (*sets, *views) if len(rows.lengths)]
        keys = [key for rows in present for key in rows.keys]
        lengths = np.concatenate([rows.lengths for rows in present])
        return cls(present, keys, lengths, sum(len(rows.lengths) for rows in sets))

    def inputs(self, indices: Indices) -> dict[str, torch.Tensor]:
        """Of rows of one set, as those of a batch of ``batches`` are."""
        start = 0
        for rows in self.sets:
            if indices[0] < start + len(rows.lengths):
                return rows.inputs(indices - start)
            start += len(rows.lengths)
        raise IndexError(f"row {indices[0]} of {start}")

    def batches(self, chosen: Indices, size: int) -> list[Indices]:
        """The rows ``chosen`` from short to long, set by set, ``size`` to a batch."""
        batches: list[Indices] = []
        start = 0
        for rows in self.sets:
            inside = chosen[(chosen >= start) & (chosen < start + len(rows.lengths))]
            batches += [inside[batch] for batch in evaluation_batches(self.lengths[inside], size)]
            start += len(rows.lengths)
        return batches
