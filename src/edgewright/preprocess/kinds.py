"""What examples may be: texts or images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Kind:
    """A kind of example; ``name`` is in preprocess.json, ``task`` in every manifest."""

    name: str
    task: str
    many: str  # for messages


TEXT: Final = Kind("text", "text-classification", "texts")
IMAGE: Final = Kind("image", "image-classification", "images")
BY_TASK: Final = {kind.task: kind for kind in (TEXT, IMAGE)}


@dataclass(frozen=True, eq=False)
class Encoding:
    """A batch.

    ``arrays`` maps each input name, in the model's order, to an array: int64 of shape (rows,
    length) for texts, float32 of shape (rows, 3, height, width) for images. ``truncated`` is bool
    of shape (rows,), true where a text lost tokens to ``max_length``.
    """

    arrays: dict[str, NDArray[Any]]
    truncated: NDArray[np.bool_]
