"""Labelled images as the batches that a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from edgewright.examples import Image
from edgewright.finetune.augment import Augmentation
from edgewright.finetune.batches import Indices
from edgewright.preprocess import DecodedRow, ImagePreprocessor
from edgewright.preprocess.decode import decode

_KEPT_BYTES: Final = 256 << 20  # of pictures as the model sees them


@dataclass(frozen=True, eq=False)
class ImageRows:
    """Images decoded batch by batch; unless augmented, the first of them are kept in memory."""

    preprocessor: ImagePreprocessor
    images: Sequence[Image]
    labels: NDArray[np.int64]
    augmentation: Augmentation | None = None  # None shows them as serving does
    epoch: int = 0
    _kept: dict[int, DecodedRow] = field(default_factory=dict)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """All pictures are of one size once they are preprocessed."""
        return np.ones(len(self.labels), np.int64)

    @property
    def truncated(self) -> int:
        """Nothing of an image is lost to a length limit."""
        return 0

    def for_epoch(self, epoch: int) -> ImageRows:
        """The same images as training sees them in this epoch, from 1."""
        return replace(self, epoch=epoch)

    def inputs(self, indices: Indices) -> dict[str, torch.Tensor]:
        """pixel_values: float32 of shape (rows, 3, height, width)."""
        rows = [self._row(index) for index in indices.tolist()]
        arrays = self.preprocessor.pad(rows).arrays
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _row(self, index: int) -> DecodedRow:
        if index in self._kept:
            return self._kept[index]
        image = self.images[index]
        picture = decode(image.read(), image.name)
        if self.augmentation is not None:
            return DecodedRow(
                self.augmentation.pixels(
                    self.preprocessor, picture, image.name, epoch=self.epoch, row=index
                )
            )
        row = DecodedRow(self.preprocessor.pixels(picture, image.name))
        if (len(self._kept) + 1) * row.pixels.nbytes <= _KEPT_BYTES:
            # A cut is a view of the whole resized picture, which would be kept along with it.
            self._kept[index] = DecodedRow(row.pixels.copy())
        return row
