"""The bytes of an image file to upright RGB pixels, by one set of rules.

formats         those of ``FORMATS``, told by content; of several pictures in a file the first
size            at most ``MAX_PIXELS``, known from the header, before anything is decoded
orientation     as EXIF says, so that the picture stands as it does on a screen
transparency    laid on white
grey, palette, CMYK, YCbCr    converted to RGB as Pillow does
16 bits         the upper eight; one bit: black and white
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgewright.errors import InputError

FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS: Final = 50_000_000  # 150 MB as RGB; Pillow itself warns from 89 million on
_SUFFIXES: Final = {
    "PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif",
    "TIFF": ".tiff",
}  # fmt: skip
_BACKGROUND: Final = (255, 255, 255)
_PLAIN: Final = ("RGB", "L", "1", "CMYK", "YCbCr")
_TRANSPARENT: Final = ("RGBA", "LA", "PA", "RGBa", "La")
_DEEP: Final = (
    "I;16",
    "I;16B",
    "I;16L",
    "I;16N",
    "I",
)  # grey of 16 bits, "I" as older Pillow reads

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB


def decode(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in ``data``: mode RGB, upright.

    Args:
        data: the whole file.
        name: for messages.
        max_pixels: width times height.

    Raises:
        InputError: not an image of ``FORMATS``, cut off or damaged, too large, or of a kind of
            pixel whose range nobody knows; its message begins with ``name``.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, name, max_pixels)
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image), name)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, "more", max_pixels) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is no image that is read here ({_begins(data)}); "
            f"give a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
        ) from error
    except Exception as error:  # Pillow's plugins let through whatever their parsers raise
        reason = str(error).strip() or type(error).__name__
        raise InputError(
            f"{name} cannot be decoded: {reason}; it is cut off or damaged, save it anew"
        ) from error


def suffix(data: bytes) -> str | None:
    """The ending of a file that holds ``data``, dot included, by what its head says.

    None where it is no image of ``FORMATS``.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _SUFFIXES.get(image.format or "")
    except Exception:  # as in ``decode``
        return None


def rgb_pixels(data: bytes, name: str) -> Pixels:
    """``decode`` as an array."""
    return np.asarray(decode(data, name))


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise _too_large(name, f"{image.width} x {image.height}", max_pixels)


def _too_large(name: str, size: str, max_pixels: int) -> InputError:
    return InputError(
        f"{name} has {size} pixels, and at most {max_pixels / 1e6:g} million are decoded; shrink it"
    )


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode in _DEEP:
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if mode in _TRANSPARENT or "transparency" in image.info or mode == "P":
        opaque = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, _BACKGROUND)
        return Image.alpha_composite(ground, opaque).convert("RGB")
    if mode in _PLAIN:
        return image.convert("RGB")
    raise InputError(f"{name} has pixels of mode {mode}, which have no one range; save it as RGB")


def _begins(data: bytes) -> str:
    if not data:
        return "it is empty"
    return f"it begins with {data[:8]!r}"
