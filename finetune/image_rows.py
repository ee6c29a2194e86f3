"""Labelled images as the batches that a model takes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Final

import numpy as np
import PIL
import torch
from numpy.typing import NDArray

from edgewright.examples import Image
from edgewright.finetune.augment import Augmentation
from edgewright.finetune.batches import Indices
from edgewright.manifest import canonical_json
from edgewright.preprocess import DecodedRow, ImagePreprocessor
from edgewright.preprocess.decode import decode

_KEPT_BYTES: Final = 256 << 20  # of pictures as the model sees them
_AS_SERVED: Final = 0


@dataclass(frozen=True, eq=False)
class ImageRows:
    """Images decoded batch by batch; the first of them are kept in memory as serving shows them."""

    preprocessor: ImagePreprocessor
    ids: Sequence[str]  # by content
    images: Sequence[Image]
    labels: NDArray[np.int64]
    augmentation: Augmentation | None = None  # None: epochs show them as serving does
    view: int = _AS_SERVED
    _kept: dict[int, DecodedRow] = field(default_factory=dict)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """All pictures are of one size once they are preprocessed."""
        return np.ones(len(self.labels), np.int64)

    @property
    def truncated(self) -> int:
        """Nothing of an image is lost to a length limit."""
        return 0

    @property
    def unknown(self) -> int:
        """No image is unknown to what decodes it."""
        return 0

    @cached_property
    def keys(self) -> list[str]:
        """Identify each row by its file, the view of it, the preprocessing and what decodes it."""
        settings = canonical_json(asdict(self.preprocessor.settings))
        seen = "" if self._changes is None else self._changes.recipe(self.view)
        common = b"\n".join([settings, PIL.__version__.encode(), seen.encode()])
        return [
            hashlib.blake2b(common, digest_size=16, key=key.encode()).hexdigest()
            for key in self.ids
        ]

    def for_epoch(self, epoch: int) -> ImageRows:
        """The same images as training sees them in this epoch, from 1."""
        if self.augmentation is None:
            return self
        return replace(self, view=self.augmentation.view(epoch))

    @property
    def views(self) -> list[ImageRows]:
        """What epochs show in turn; empty where they show no views, or each its own."""
        if self.augmentation is None or self.augmentation.views is None:
            return []
        return [self.for_epoch(epoch + 1) for epoch in range(self.augmentation.views)]

    def joined(self, other: ImageRows) -> ImageRows:
        """These rows and, after them, the other's, as serving shows them."""
        return ImageRows(
            self.preprocessor,
            [*self.ids, *other.ids],
            [*self.images, *other.images],
            np.concatenate([self.labels, other.labels]),
        )

    def inputs(self, indices: Indices) -> dict[str, torch.Tensor]:
        """pixel_values: float32 of shape (rows, 3, height, width)."""
        rows = [self._row(index) for index in indices.tolist()]
        arrays = self.preprocessor.pad(rows).arrays
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @property
    def _changes(self) -> Augmentation | None:
        """What is done to the pictures in this view."""
        return None if self.view == _AS_SERVED else self.augmentation

    def _row(self, index: int) -> DecodedRow:
        if self._changes is not None:
            return DecodedRow(self._changed(self._changes, index))
        if index in self._kept:
            return self._kept[index]
        image = self.images[index]
        row = DecodedRow(self.preprocessor.pixels(decode(image.read(), image.name), image.name))
        if (len(self._kept) + 1) * row.pixels.nbytes <= _KEPT_BYTES:
            # A cut is a view of the whole resized picture, which would be kept along with it.
            self._kept[index] = DecodedRow(row.pixels.copy())
        return row

    def _changed(self, changes: Augmentation, index: int) -> NDArray[np.uint8]:
        image = self.images[index]
        picture = decode(image.read(), image.name)
        return changes.pixels(
            self.preprocessor, picture, image.name, view=self.view, image_id=self.ids[index]
        )
