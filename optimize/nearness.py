"""How near a candidate's features are to the model's own: described, and certified by nobody."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TINY = 1e-12  # a length below it counts as none


@dataclass(frozen=True)
class Nearness:
    """Cosines between a candidate's features and the model's, over the search rows."""

    rows: int
    cosine_median: float
    cosine_worst: float

    @classmethod
    def of(cls, expected: NDArray[np.floating[Any]], found: NDArray[np.floating[Any]]) -> Nearness:
        """Of features of shape (rows, width); a row of zeros is near to nothing but zeros."""
        first, second = expected.astype(np.float64), found.astype(np.float64)
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        cosines = (first * second).sum(axis=1) / np.maximum(lengths, _TINY)
        cosines[~first.any(axis=1) & ~second.any(axis=1)] = 1.0
        return cls(len(cosines), float(np.median(cosines)), float(cosines.min()))

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)
