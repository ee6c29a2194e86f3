"""Pictures seen a little differently in every epoch of training: cut and mirrored at random.

What is drawn depends on seed, epoch and row alone, so that an epoch can be repeated without the
ones before it, in any order and on any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Final

import numpy as np
from PIL import Image

from edgewright.preprocess.decode import Pixels
from edgewright.preprocess.images import RESAMPLE, ImagePreprocessor

_AREA: Final = (0.6, 1.0)  # share of the picture that a cut keeps
_ASPECT: Final = (3 / 4, 4 / 3)  # width of the cut over its height
_TRIES: Final = 10


@dataclass(frozen=True)
class Augmentation:
    """What is done to pictures of the train split: one of ``image_options.AUGMENTS``."""

    name: str
    seed: int

    def pixels(
        self,
        preprocessor: ImagePreprocessor,
        image: Image.Image,
        name: str,
        *,
        epoch: int,
        row: int,
    ) -> Pixels:
        """What the model sees of an RGB picture: uint8 (height, width, 3).

        Args:
            preprocessor: of the model.
            image: upright, RGB.
            name: for messages.
            epoch: from 1.
            row: of the train split.
        """
        rng = np.random.default_rng([self.seed, epoch, row])
        if self.name in ("crop", "light"):
            settings = preprocessor.settings
            height, width = settings.size
            box = _cut(image.width, image.height, rng)
            resample = RESAMPLE[settings.resample]
            pixels = np.asarray(image.resize((width, height), resample, box=box))
        else:
            pixels = preprocessor.pixels(image, name)
        mirrored = self.name in ("flip", "light") and rng.random() < 0.5
        return pixels[:, ::-1] if mirrored else pixels


def _cut(width: int, height: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A part of a picture at random (Szegedy et al. 2015): left, top, right, bottom in pixels."""
    for _ in range(_TRIES):
        area = rng.uniform(*_AREA)
        aspect = exp(rng.uniform(log(_ASPECT[0]), log(_ASPECT[1])))
        wide, high = width * sqrt(area * aspect), height * sqrt(area / aspect)
        if wide <= width and high <= height:
            left, top = rng.uniform(0, width - wide), rng.uniform(0, height - high)
            return left, top, left + wide, top + high
    return 0.0, 0.0, float(width), float(height)
