"""Near-duplicate images: the same picture saved, scaled or compressed once more.

Each picture is reduced to the means of 16 x 16 fields by colour. Two are alike where these differ
by at most two of 256 levels on average, and by at most a tenth of the contrast of the flatter one:
a difference of two levels is nothing in a photograph, and all there is between two grey X-rays.

No pair is missed: the mean difference of coarser fields, and of whole pictures, is never more than
that of the finer ones, so that only pictures of like brightness are compared, first coarsely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from edgewright.errors import DataError, InputError
from edgewright.preprocess.decode import decode
from edgewright.tables.image_folder import Image

FIELDS: Final = 16  # by side
LEVELS: Final = 2.0  # of 256
_CONTRAST: Final = 0.1
_COARSE: Final = 4
_THREADS: Final = 4  # Pillow decodes outside of the GIL
_FAULTS_SHOWN: Final = 5

Signatures = NDArray[np.uint8]  # (rows, 16 * 16 * 3)


def signatures(images: Sequence[Image]) -> Signatures:
    """The reduced pictures, shape (rows, 768); reads and decodes every file once.

    Raises:
        DataError: names the files that cannot be decoded, the first few of them, and says why.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(_signature, images))
    faults = [each for each in found if isinstance(each, str)]
    if faults:
        more = len(faults) - _FAULTS_SHOWN
        raise DataError(
            "; ".join(faults[:_FAULTS_SHOWN])
            + (f"; and {more} more" if more > 0 else "")
            + ". Correct or remove these files, then run again"
        )
    rows = [each for each in found if not isinstance(each, str)]
    return np.stack(rows) if rows else np.empty((0, FIELDS * FIELDS * 3), np.uint8)


def _signature(image: Image) -> Signatures | str:
    """One picture's, shape (768,), or what is wrong with it."""
    try:
        picture = decode(image.read(), image.name)
    except InputError as error:
        return str(error)
    return np.asarray(picture.resize((FIELDS, FIELDS), Pillow.Resampling.BOX)).reshape(-1)


class NearImages:
    """The near-duplicates among pictures, found once and asked by row (0-based).

    ``components``: lists of rows, each ascending, ordered by first row: every connected component
    of the near-duplicate relation, single rows included.
    """

    def __init__(self, reduced: Signatures) -> None:
        self._reduced = reduced.astype(np.int16)
        self._contrast = _contrast(reduced)
        fields = reduced.reshape(len(reduced), _COARSE, -1, _COARSE, FIELDS // _COARSE, 3)
        self._coarse = fields.mean(axis=(2, 4), dtype=np.float32).reshape(len(reduced), -1)
        self._pairs = sorted(self._find())
        parents = list(range(len(reduced)))

        def root(row: int) -> int:
            while parents[row] != row:
                parents[row] = parents[parents[row]]
                row = parents[row]
            return row

        for one, other in self._pairs:
            first, second = sorted((root(one), root(other)))
            parents[second] = first
        components: dict[int, list[int]] = {}
        for row in range(len(reduced)):
            components.setdefault(root(row), []).append(row)
        self.components: list[list[int]] = list(components.values())

    def pairs(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """All near-duplicate pairs (smaller row first) among ``rows``."""
        wanted = set(rows)
        return [pair for pair in self._pairs if wanted.issuperset(pair)]

    def _find(self) -> Iterator[tuple[int, int]]:
        """Every pair, smaller row first."""
        brightness = self._coarse.mean(axis=1)
        order = np.argsort(brightness, kind="stable")
        ends = np.searchsorted(brightness[order], brightness[order] + LEVELS + 1e-3, "right")
        for place, row in enumerate(order.tolist()):
            others = order[place + 1 : ends[place]]
            coarse = np.abs(self._coarse[others] - self._coarse[row]).mean(axis=1)
            others = others[coarse <= LEVELS + 1e-3]  # float32's rounding may not lose a pair
            difference = np.abs(self._reduced[others] - self._reduced[row]).mean(axis=1)
            contrast = np.minimum(self._contrast[others], self._contrast[row])
            near = difference <= np.minimum(LEVELS, _CONTRAST * contrast)
            yield from ((min(row, each), max(row, each)) for each in others[near].tolist())


def _contrast(reduced: Signatures) -> NDArray[np.float64]:
    """Mean distance of a picture's fields from its mean colour, in levels, shape (rows,)."""
    colours = reduced.reshape(len(reduced), -1, 3).astype(np.float64)
    distances = np.abs(colours - colours.mean(axis=1, keepdims=True))
    contrast: NDArray[np.float64] = distances.mean(axis=(1, 2))
    return contrast
