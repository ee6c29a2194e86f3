"""RGB pictures to a model's array, by Pillow and numpy.

A picture is resized, cut from the middle, and its pixels are looked up: rescaling and normalising
map each of 256 values of a channel to one float32, so that the table, made once with the same
operations in the same order as transformers', gives the same bits.

One file holds it inside an artifact: ``preprocess.json`` (``ImageSettings``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from math import ceil, isfinite
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgewright.errors import ConfigError, InputError, IntegrityError
from edgewright.kinds import IMAGE, Kind
from edgewright.preprocess.decode import MAX_PIXELS, Pixels, decode
from edgewright.preprocess.encoding import Encoding
from edgewright.preprocess.settings_file import SETTINGS_FILE, read_settings, write_settings

PIXEL_VALUES: Final = "pixel_values"
RESAMPLE: Final = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
_LARGEST_SIDE: Final = 4096
_CHANNELS: Final = 3


@dataclass(frozen=True)
class ImageSettings:
    """How a picture becomes an array; sizes in pixels, height first. ConfigError tells every fault.

    ``resize`` (n,) makes the shorter side n and keeps the proportions, (height, width) does not
    keep them, () leaves the size. ``crop`` is taken from the middle, black where the picture is
    smaller. A value v of red, green or blue becomes (v * scale + offset - mean) / std / last_std;
    ``channels`` is the order in which the model gets them.
    """

    resize: tuple[int, ...]
    crop: tuple[int, ...]  # (height, width), or () for all of it
    resample: str = "bilinear"
    scale: float = 1 / 255
    offset: float = 0.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    last_std: tuple[float, ...] = ()  # () divides no second time
    channels: str = "rgb"  # or "bgr"

    def __post_init__(self) -> None:
        rules: dict[str, tuple[bool, str]] = {
            "resize": (_are_sides(self.resize, (0, 1, 2)), f"up to two sides {_SIDES}"),
            "crop": (_are_sides(self.crop, (0, 2)), f"none or two sides {_SIDES}"),
            "resample": (self.resample in tuple(RESAMPLE), f"one of {', '.join(RESAMPLE)}"),
            "scale": (_is_number(self.scale) and self.scale > 0, "a number above 0"),
            "offset": (_is_number(self.offset), "a number"),
            "mean": (_are_numbers(self.mean, _CHANNELS), "three numbers"),
            "std": (_are_numbers(self.std, _CHANNELS, positive=True), "three numbers above 0"),
            "last_std": (
                self.last_std == () or _are_numbers(self.last_std, _CHANNELS, positive=True),
                "none or three numbers above 0",
            ),
            "channels": (self.channels in ("rgb", "bgr"), "rgb or bgr"),
        }
        faults = [
            f"{name} is {getattr(self, name)!r}; it must be {expected}"
            for name, (holds, expected) in rules.items()
            if not holds
        ]
        if not faults and not self.crop and len(self.resize) < 2:
            faults = [
                f"resize {self.resize} without a crop gives pictures of any shape, which no batch "
                "can hold; give a height and a width"
            ]
        if faults:
            raise ConfigError(faults)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what the model gets."""
        height, width = self.crop or self.resize
        return height, width

    def table(self) -> NDArray[np.float32]:
        """(3, 256): what each value of red, green and blue becomes.

        The operations are transformers': times ``scale`` in float64, all that follows in float32.
        """
        values = np.arange(256, dtype=np.uint8)[:, None].repeat(_CHANNELS, axis=1)
        scaled = (values.astype(np.float64) * self.scale).astype(np.float32)
        if self.offset:
            scaled = scaled + np.float32(self.offset)
        normalised = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        if self.last_std:
            normalised = normalised / np.array(self.last_std, np.float32)
        table: NDArray[np.float32] = np.ascontiguousarray(normalised.T)
        return table


class ImageRow(Protocol):
    """One picture as the model's pixels; ``len(row)`` is its height."""

    @property
    def pixels(self) -> Pixels:
        """uint8 of shape (height, width, 3), RGB."""
        ...

    @property
    def truncated(self) -> bool:
        """Nothing of a picture is left out for want of room."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False, slots=True)
class DecodedRow:
    """A picture in memory: 150 kB at 224 x 224."""

    pixels: Pixels
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, eq=False, slots=True)
class LazyRow:
    """A picture that is read and decoded whenever it is asked for, so that memory stays bounded."""

    preprocessor: ImagePreprocessor
    read: Callable[[], bytes]
    name: str
    truncated: bool = False

    @property
    def pixels(self) -> Pixels:
        """uint8 of shape (height, width, 3), RGB."""
        return self.preprocessor.pixels(decode(self.read(), self.name), self.name)

    def __len__(self) -> int:
        return self.preprocessor.settings.size[0]


@dataclass(frozen=True, eq=False, slots=True)
class PixelRow:
    """A picture that its caller has preprocessed: float32 of shape (3, height, width)."""

    values: NDArray[np.float32]
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.values[0])


class ImagePreprocessor:
    """Pictures to arrays. Safe to share between threads: nothing changes after construction."""

    kind: Kind = IMAGE
    input_dtype = "float32"
    input_names: tuple[str, ...] = (PIXEL_VALUES,)

    def __init__(self, settings: ImageSettings) -> None:
        self.settings = settings
        self._table = settings.table()
        self._planes = tuple("rgb".index(channel) for channel in settings.channels)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(-1, 3, height, width)."""
        return (-1, _CHANNELS, *self.settings.size)

    @property
    def largest_value(self) -> float:
        """The largest magnitude of a value in its arrays."""
        return float(np.abs(self._table).max())

    def __call__(self, images: Sequence[bytes], length: int | None = None) -> Encoding:
        """Decode, resize, normalise; raises as ``encode`` and ``pad`` do."""
        return self.pad(self.encode(images), length)

    def encode(self, images: Sequence[Any]) -> list[DecodedRow]:
        """Decode and resize, one row for each image file; InputError names the one at fault."""
        if not images:
            raise InputError("the batch is empty; give at least one image", field="images")
        rows = []
        for index, data in enumerate(images):
            name = f"images[{index}]"
            if not isinstance(data, bytes):
                kind = type(data).__name__
                raise InputError(f"{name} is of type {kind}; it must be bytes", field=name)
            try:
                rows.append(DecodedRow(self.pixels(decode(data, name), name)))
            except InputError as error:
                raise InputError(str(error), field=name) from error
        return rows

    def pixels(self, image: Image.Image, name: str) -> Pixels:
        """What the model sees of an RGB picture: uint8 of shape (height, width, 3).

        Raises:
            InputError: it is so long and thin that resizing it would take too much memory.
        """
        resampling = RESAMPLE[self.settings.resample]
        target = _resized(image.height, image.width, self.settings.resize)
        if target[0] * target[1] > MAX_PIXELS:
            raise InputError(
                f"{name}: {image.width} x {image.height} is too long and thin: as the model wants "
                f"it, it would have {target[0] * target[1]:,} pixels; cut a part out"
            )
        if self.settings.resize:
            image = image.resize((target[1], target[0]), resample=resampling)
        return _middle(np.asarray(image), self.settings.crop)

    def pad(self, rows: Sequence[ImageRow | PixelRow], length: int | None = None) -> Encoding:
        """Rows as one batch: float32 of shape (rows, 3, height, width).

        Raises InputError when there is no row, ConfigError when ``length`` is not the height.
        """
        if not rows:
            raise InputError("the batch is empty; give at least one image", field="images")
        self._refuse_length(length)
        values = np.empty((len(rows), *self.input_shape[1:]), np.float32)
        for row, planes in zip(rows, values, strict=True):
            if isinstance(row, PixelRow):
                planes[...] = row.values
                continue
            pixels = row.pixels
            for channel, plane in zip(self._planes, planes, strict=True):
                plane[...] = self._table[channel][pixels[:, :, channel]]
        return Encoding({PIXEL_VALUES: values}, np.zeros(len(rows), np.bool_))

    def cut(self, row: ImageRow, length: int) -> ImageRow:
        """The row itself, which has one height only; ConfigError for another."""
        self._refuse_length(length)
        return row

    def save(self, folder: Path) -> None:
        """Write preprocess.json into ``folder``: the same bytes every time."""
        write_settings(folder / SETTINGS_FILE, IMAGE, asdict(self.settings))

    @classmethod
    def load(cls, folder: Path) -> ImagePreprocessor:
        """Read what ``save`` wrote.

        Raises ArtifactNotFoundError when the file is missing or of another kind, IntegrityError
        when it is malformed.
        """
        path = folder / SETTINGS_FILE
        record = read_settings(path, IMAGE, {field.name for field in fields(ImageSettings)})
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        try:
            return cls(ImageSettings(**values))
        except ConfigError as error:
            raise IntegrityError(f"{path}: {error}") from error

    def _refuse_length(self, length: int | None) -> None:
        height, width = self.settings.size
        if length is not None and length != height:
            raise ConfigError(
                f"the model takes pictures of {height} x {width} pixels only, so a workload's "
                f"length is {height}, not {length}"
            )


def _resized(height: int, width: int, resize: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) after resizing, the longer side rounded down."""
    if len(resize) == 2:
        return resize[0], resize[1]
    if not resize:
        return height, width
    (short,) = resize
    if width <= height:
        return int(short * height / width), short
    return short, int(short * width / height)


def _middle(pixels: Pixels, crop: tuple[int, ...]) -> Pixels:
    """The middle of a picture, on black where it is smaller than ``crop``.

    Odd remainders go to the right and bottom when cutting, to the left and top when filling up, as
    in transformers' ``center_crop``.
    """
    if not crop or pixels.shape[:2] == crop:
        return pixels
    height, width = crop
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    if top >= 0 and left >= 0:
        return pixels[top : top + height, left : left + width]
    large = np.zeros((max(height, pixels.shape[0]), max(width, pixels.shape[1]), 3), np.uint8)
    down = ceil((large.shape[0] - pixels.shape[0]) / 2)
    right = ceil((large.shape[1] - pixels.shape[1]) / 2)
    large[down : down + pixels.shape[0], right : right + pixels.shape[1]] = pixels
    top, left = max(0, top + down), max(0, left + right)
    return large[top : top + height, left : left + width]


_SIDES: Final = f"of 1 to {_LARGEST_SIDE} pixels"


def _are_sides(value: object, counts: tuple[int, ...]) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) in counts
        and all(type(side) is int and 1 <= side <= _LARGEST_SIDE for side in value)
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)


def _are_numbers(value: object, count: int, *, positive: bool = False) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == count
        and all(_is_number(each) and (each > 0 or not positive) for each in value)
    )
