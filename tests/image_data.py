"""Small real pictures on disk: handwritten digits, a sub-folder for each class."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 pictures as uint8 (rows, 8, 8), and their classes."""
    loaded = load_digits()
    return (loaded.images * 15.9375).astype(np.uint8), loaded.target


def digit_image(row: int, side: int = 8) -> Image.Image:
    image = Image.fromarray(digits()[0][row])
    return image if side == 8 else image.resize((side, side), Image.Resampling.BICUBIC)


def digit_folder(folder: Path, rows: Iterable[int], side: int = 8) -> Path:
    """folder/<class>/<row>.png."""
    for row in rows:
        target = folder / str(digits()[1][row])
        target.mkdir(parents=True, exist_ok=True)
        digit_image(row, side).save(target / f"{row}.png")
    return folder
