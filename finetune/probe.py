"""A probe: one way of asking a model how much it still knows of what it knew before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


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
