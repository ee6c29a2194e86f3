"""What examples may be: texts or images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Kind:
    """A kind of example; ``name`` is in preprocess.json, ``task`` in every manifest."""

    name: str
    task: str
    many: str  # for messages


TEXT: Final = Kind("text", "text-classification", "texts")
IMAGE: Final = Kind("image", "image-classification", "images")
