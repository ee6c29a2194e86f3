"""Images in which nothing can be seen: of one colour, such as a lens cap or an empty scan."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from PIL import Image as Pillow

from edgewright.preprocess.decode import decode
from edgewright.tables.image_folder import Image

# Of 256, between the darkest and the lightest pixel of a colour: what JPEG adds to a flat field.
LEVELS: Final = 8
_THREADS: Final = 4  # Pillow decodes outside of the GIL


def blank_images(images: Sequence[Image]) -> list[int]:
    """Places of the blank ones, ascending; reads and decodes every file once.

    Raises:
        InputError: a file cannot be decoded.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return [row for row, blank in enumerate(pool.map(_is_file_blank, images)) if blank]


def is_blank(picture: Pillow.Image) -> bool:
    """Whether an RGB picture is of one colour, give or take ``LEVELS``."""
    pixels = np.asarray(picture)
    spread = pixels.max(axis=(0, 1)).astype(np.int64) - pixels.min(axis=(0, 1))
    return bool((spread <= LEVELS).all())


def _is_file_blank(image: Image) -> bool:
    return is_blank(decode(image.read(), image.name))
