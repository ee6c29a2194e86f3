"""Pictures seen a little differently in every epoch of training: cut and mirrored at random.

What is drawn depends on seed, view and picture alone, so that an epoch can be repeated without the
ones before it, in any order and on any number of workers. Every epoch has a view of its own or,
where their number is given, takes its turn among so many, which can then be kept.
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
_VERSION: Final = 1  # of what the names below do; views that were kept are known by it


@dataclass(frozen=True)
class Augmentation:
    """What is done to pictures of the train split: one of ``image_options.AUGMENTS``."""

    name: str
    seed: int
    views: int | None = None  # of each picture; None: as many as there are epochs

    def view(self, epoch: int) -> int:
        """The view that an epoch shows; both from 1."""
        return epoch if self.views is None else (epoch - 1) % self.views + 1

    def recipe(self, view: int) -> str:
        """What a view of a picture depends on beside the picture and how it is preprocessed."""
        return f"{self.name} {_VERSION} {self.seed} {view}"

    def pixels(
        self,
        preprocessor: ImagePreprocessor,
        image: Image.Image,
        name: str,
        *,
        view: int,
        image_id: str,
    ) -> Pixels:
        """What the model sees of an RGB picture: uint8 (height, width, 3).

        Args:
            preprocessor: of the model.
            image: upright, RGB.
            name: for messages.
            view: from 1.
            image_id: of the picture, in hexadecimal digits.
        """
        rng = np.random.default_rng([self.seed, view, int(image_id, 16)])
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
