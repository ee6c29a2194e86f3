"""Outliers: rows that lie far from every other row in the encoder's space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgewright.finetune.probe import Features

NEIGHBOURS: Final = 10
_FAR_OUT: Final = 3.0  # interquartile ranges above the third quartile
_MIN_ROWS: Final = 30
_CHUNK_ROWS: Final = 1024


@dataclass(frozen=True, eq=False)
class Outliers:
    """Rows beyond ``limit``, the farthest first, with their distances.

    A distance is 1 - cosine, averaged over the ten nearest other rows.
    """

    judged: int
    limit: float | None  # None where there are too few rows to tell
    rows: tuple[int, ...]
    distances: tuple[float, ...]


def find_outliers(features: Features) -> Outliers:
    """Rows whose mean distance to their nearest neighbours is far out.

    Far out is above the third quartile by more than three interquartile ranges (Tukey 1977). The
    features, (rows, dims), are centred first: encoders put all texts into a narrow cone.
    """
    if len(features) < _MIN_ROWS:
        return Outliers(len(features), None, (), ())
    distances = _neighbour_distances(features)
    low, high = np.quantile(distances, [0.25, 0.75])
    limit = float(high + _FAR_OUT * (high - low))
    order = np.argsort(-distances, kind="stable")
    far = [int(row) for row in order if distances[row] > limit]
    return Outliers(len(features), limit, tuple(far), tuple(float(distances[row]) for row in far))


def _neighbour_distances(features: Features) -> NDArray[np.float64]:
    """Mean of 1 - cosine to the nearest other rows, shape (rows,), a slice of rows at a time."""
    from threadpoolctl import threadpool_limits

    centred = features - features.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    means = np.empty(len(unit))
    with threadpool_limits(1):
        for start in range(0, len(unit), _CHUNK_ROWS):
            near = unit[start : start + _CHUNK_ROWS] @ unit.T
            near[np.arange(len(near)), np.arange(start, start + len(near))] = -np.inf
            nearest = np.partition(near, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
            means[start : start + len(near)] = 1 - nearest.mean(axis=1, dtype=np.float64)
    return means
