"""A batch of examples as the arrays that a model takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Encoding:
    """A batch.

    ``arrays`` maps each input name, in the model's order, to an array: int64 of shape (rows,
    length) for texts, float32 of shape (rows, 3, height, width) for images. ``truncated`` is bool
    of shape (rows,), true where a text lost tokens to ``max_length``.
    """

    arrays: dict[str, NDArray[Any]]
    truncated: NDArray[np.bool_]
