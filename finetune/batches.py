"""Rows of examples as the batches that a model takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol, Self, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from edgewright.preprocess import TextPreprocessor, TokenRow

Indices = NDArray[np.int64]  # (rows,) places in the rows they are drawn from

_POOL_STEPS: Final = 16  # steps whose rows are sorted by length together


class Rows(Protocol):
    """Labelled model inputs by index: what training and evaluation read."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, shape (rows,)."""
        ...

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Size of each row before padding, in tokens, shape (rows,)."""
        ...

    def inputs(self, indices: Indices) -> dict[str, torch.Tensor]:
        """Model inputs of these rows, on the CPU, each tensor with the rows first."""
        ...


@runtime_checkable
class ChangingRows(Rows, Protocol):
    """Rows that training sees differently in every epoch."""

    def for_epoch(self, epoch: int) -> Self:
        """The rows as they are in this epoch, from 1."""
        ...


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Texts tokenised once and padded batch by batch, to the longest row of each batch."""

    preprocessor: TextPreprocessor
    rows: Sequence[TokenRow]
    labels: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(
        cls, preprocessor: TextPreprocessor, texts: Sequence[str], labels: NDArray[np.int64]
    ) -> TokenRows:
        """Tokenise ``texts``; ``labels`` has shape (rows,)."""
        rows = preprocessor.encode(texts) if len(texts) else []
        return cls(preprocessor, rows, labels, np.array([len(row) for row in rows], np.int64))

    def inputs(self, indices: Indices) -> dict[str, torch.Tensor]:
        """int64 tensors of shape (rows, longest row)."""
        arrays = self.preprocessor.pad([self.rows[index] for index in indices]).arrays
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def joined(self, other: TokenRows) -> TokenRows:
        """These rows and, after them, the other's."""
        return TokenRows(
            self.preprocessor,
            [*self.rows, *other.rows],
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.lengths, other.lengths]),
        )

    @cached_property
    def keys(self) -> list[str]:
        """Identify each row by its tokens; rows of the same tokens have the same key."""
        return [_key(row) for row in self.rows]

    @property
    def views(self) -> list[TokenRows]:
        """Every epoch shows texts as they are."""
        return []

    @property
    def truncated(self) -> int:
        """How many texts lost tokens to the length limit."""
        return sum(row.truncated for row in self.rows)

    @cached_property
    def unknown(self) -> int:
        """How many texts are for more than half tokens that the tokenizer does not know."""
        unknown, special = self.preprocessor.unknown_token_id, self.preprocessor.special_tokens
        if unknown is None:
            return 0
        return sum(
            2 * int(np.count_nonzero(row.input_ids == unknown)) > len(row) - special
            for row in self.rows
        )


@dataclass(frozen=True, eq=False)
class RowSubset:
    """Some of the rows, as rows."""

    rows: Rows
    chosen: Indices  # places in ``rows``

    @classmethod
    def draw(cls, rows: Rows, most: int, *, seed: int) -> RowSubset:
        """At most ``most`` rows, by ``seed``, in the order they have in ``rows``."""
        order = np.random.default_rng(seed).permutation(len(rows.labels))
        return cls(rows, np.sort(order[:most]))

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, shape (chosen,)."""
        return self.rows.labels[self.chosen]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Size of each row, shape (chosen,)."""
        return self.rows.lengths[self.chosen]

    def inputs(self, indices: Indices) -> dict[str, torch.Tensor]:
        """As the rows they are taken from give them."""
        return self.rows.inputs(self.chosen[indices])


def training_steps(
    lengths: NDArray[np.int64], size: int, *, seed: int, epoch: int, least: int = 1
) -> list[Indices]:
    """Every row once, in random steps of ``size`` rows of like length; the last may be smaller.

    Rows are shuffled, sorted by length within pools of a few steps, cut into steps, and the steps
    shuffled: little padding, and still another composition in every epoch. The outcome depends on
    the arguments alone, so that an epoch can be repeated without the ones before it.

    Args:
        lengths: (rows,) length of each row.
        size: rows of a step.
        seed: of the run.
        epoch: from 1.
        least: rows of a step; what would be left over joins the step before.

    Returns:
        Arrays of indices; a step's rows go from short to long.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    steps: list[Indices] = []
    for pool in _chunks(order, size * _POOL_STEPS, least):
        steps += _chunks(pool[np.argsort(lengths[pool], kind="stable")], size, least)
    return [steps[index] for index in rng.permutation(len(steps))]


def evaluation_batches(lengths: NDArray[np.int64], size: int) -> list[Indices]:
    """Every row once, from short to long, in batches of ``size``: always the same ones."""
    return _chunks(np.argsort(lengths, kind="stable"), size)


def micro_batches(step: Indices, size: int, least: int = 1) -> list[Indices]:
    """A step's rows in runs of ``size``, in the order given; fewer than ``least`` join another."""
    return _chunks(step, size, least)


def to_device(inputs: dict[str, torch.Tensor], device: torch.device) -> dict[str, Any]:
    """The same tensors on ``device``."""
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _key(row: TokenRow) -> str:
    content = row.input_ids.tobytes() + row.token_type_ids.tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _chunks(indices: Indices, size: int, least: int = 1) -> list[Indices]:
    starts = list(range(0, len(indices), size))
    if len(starts) > 1 and len(indices) - starts[-1] < least:
        starts.pop()
    return np.split(indices, starts[1:]) if starts else []
