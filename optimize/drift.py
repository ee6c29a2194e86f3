"""How answers and inputs were distributed on the search split: live traffic is held against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.kinds import IMAGE, Kind
from edgewright.preprocess import Row

SCORE_EDGES: Final = tuple(round(edge / 20, 2) for edge in range(21))  # of the top score
BRIGHTNESS_EDGES: Final = tuple(range(0, 257, 16))
_DIGITS: Final = 6


def drift_reference(
    rows: Sequence[Row],
    kind: Kind,
    scores: Mapping[str, NDArray[np.float32]],
    label_names: Sequence[str],
) -> dict[str, Any]:
    """A JSON object: token lengths or brightness, and for each variant its labels and top scores.

    Args:
        rows: of the search split.
        kind: of the examples.
        scores: variant name -> (rows, classes), softmax.
        label_names: the classes.
    """
    return {
        "rows": len(rows),
        **(_brightness(rows) if kind is IMAGE else _token_lengths(rows)),
        "variants": {name: _answers(scores[name], label_names) for name in sorted(scores)},
    }


def _token_lengths(rows: Sequence[Row]) -> dict[str, Any]:
    """Of texts, special tokens included."""
    lengths = [len(row) for row in rows]
    return {"token_lengths": _histogram(np.asarray(lengths), _length_edges(max(lengths)))}


def _brightness(rows: Sequence[Any]) -> dict[str, Any]:
    """Of images: the mean of all pixels and colours as the model sees them, from 0 to 255."""
    means = np.array([row.pixels.mean() for row in rows])
    return {"brightness": _histogram(means, BRIGHTNESS_EDGES)}


def _answers(scores: NDArray[np.float32], label_names: Sequence[str]) -> dict[str, Any]:
    top = scores.max(axis=1).astype(np.float64)
    counts = np.bincount(scores.argmax(axis=1), minlength=len(label_names))
    return {
        "label_share": {
            name: round(count / len(scores), _DIGITS)
            for name, count in zip(label_names, counts.tolist(), strict=True)
        },
        "mean_top_score": round(float(top.mean()), _DIGITS),
        "top_scores": _histogram(np.minimum(top, 1.0), SCORE_EDGES),
    }


def _length_edges(longest: int) -> tuple[int, ...]:
    """Doubling: 0, 8, 16, and so on, until ``longest`` lies below the last."""
    edges = [0, 8]
    while edges[-1] <= longest:
        edges.append(2 * edges[-1])
    return tuple(edges)


def _histogram(values: NDArray[Any], edges: Sequence[float]) -> dict[str, Any]:
    """Counts of ``values`` from each edge to below the next; the last bin holds its end too."""
    counts, _ = np.histogram(values, bins=edges)
    return {"edges": list(edges), "counts": counts.tolist()}
