"""A probe: one way of asking a model how much it still knows of what it knew before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgewright.finetune.batches import Indices, Rows


@dataclass(frozen=True, eq=False)
class Reading:
    """What a probe found; ``right`` (rows,) tells independent rows, where there are such."""

    figures: Mapping[str, float]
    right: NDArray[np.bool_] | None = None


class Probe(Protocol):
    """Made while the model holds its old weights; then read as often as those change."""

    @property
    def name(self) -> str:
        """What is asked, in two words."""
        ...

    @property
    def reason(self) -> str:
        """Why this probe, and on what."""
        ...

    @property
    def metric(self) -> str:
        """The figure of a reading that says what is retained: the larger, the more."""
        ...

    @property
    def rows(self) -> int:
        """How many rows are asked about."""
        ...

    @property
    def before(self) -> Reading:
        """Of the old weights."""
        ...

    def read(self, model: Any) -> Reading:
        """Of ``model`` as it is now."""
        ...


@dataclass(frozen=True, eq=False)
class Sample:
    """Some of the rows of another ``Rows``, in the order of ``chosen``."""

    of: Rows
    chosen: Indices

    @classmethod
    def draw(cls, rows: Rows, most: int, *, seed: int) -> Sample:
        """At most ``most`` rows, by ``seed``, in the order they have in ``rows``."""
        order = np.random.default_rng(seed).permutation(len(rows.labels))
        return cls(rows, np.sort(order[:most]))

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, shape (rows,)."""
        return self.of.labels[self.chosen]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Size of each row before padding, shape (rows,)."""
        return self.of.lengths[self.chosen]

    def inputs(self, indices: Indices) -> dict[str, torch.Tensor]:
        """Model inputs of these rows of the sample."""
        return self.of.inputs(self.chosen[indices])
