"""Outliers: rows that lie far from every other row in the encoder's space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgewright.finetune.linear_probe import Features

NEIGHBOUR: Final = 10
LISTED: Final = 20
_FENCE: Final = 1.5  # interquartile ranges above the third quartile
_MIN_ROWS: Final = 30
_CHUNK_ROWS: Final = 1024


@dataclass(frozen=True, eq=False)
class Outliers:
    """The farthest rows first, with their distances, whether or not they lie beyond ``limit``.

    A distance is 1 - cosine to the tenth nearest other row, so that nine rows alike do not vouch
    for each other (Ramaswamy, Rastogi and Shim 2000).
    """

    judged: int
    limit: float | None  # None where there are too few rows to tell
    beyond: int  # rows whose distance exceeds it
    rows: tuple[int, ...]
    distances: tuple[float, ...]


def find_outliers(features: Features) -> Outliers:
    """Rank rows by the distance to their tenth neighbour, and count those beyond Tukey's fence.

    The fence is the third quartile and one and a half interquartile ranges (Tukey 1977). It is a
    count's measure, no verdict: on BBC News texts of quite another kind come first and do not
    reach it. The features, (rows, dims), are centred first: encoders put all texts into a cone.
    """
    if len(features) < _MIN_ROWS:
        return Outliers(len(features), None, 0, (), ())
    distances = _neighbour_distances(features)
    low, high = np.quantile(distances, [0.25, 0.75])
    limit = float(high + _FENCE * (high - low))
    farthest = np.argsort(-distances, kind="stable")[:LISTED].tolist()
    return Outliers(
        judged=len(features),
        limit=limit,
        beyond=int((distances > limit).sum()),
        rows=tuple(farthest),
        distances=tuple(distances[farthest].tolist()),
    )


def _neighbour_distances(features: Features) -> NDArray[np.float64]:
    """1 - cosine to the tenth nearest other row, shape (rows,), a slice of rows at a time."""
    from threadpoolctl import threadpool_limits

    centred = features - features.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    distances = np.empty(len(unit))
    with threadpool_limits(1):
        for start in range(0, len(unit), _CHUNK_ROWS):
            near = unit[start : start + _CHUNK_ROWS] @ unit.T
            near[np.arange(len(near)), np.arange(start, start + len(near))] = -np.inf
            tenth = np.partition(near, -NEIGHBOUR, axis=1)[:, -NEIGHBOUR]
            distances[start : start + len(near)] = 1 - tenth
    return distances
