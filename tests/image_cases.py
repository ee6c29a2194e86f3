"""Image files, real and adversarial: two photographs cut, scaled, and saved in every form."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # the tag in EXIF
_TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# (format, mode) that a file can have.
FORMS = (
    ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "RGBA"),
    ("PNG", "L"), ("PNG", "LA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "I;16"), ("WEBP", "RGB"),
    ("WEBP", "RGBA"), ("BMP", "RGB"), ("GIF", "P"), ("TIFF", "RGB"), ("TIFF", "CMYK"),
    ("TIFF", "I;16"),
)  # fmt: skip


@cache
def photographs() -> tuple[Image.Image, ...]:
    """Two real ones, 640 x 427."""
    from sklearn.datasets import load_sample_images

    return tuple(Image.fromarray(pixels) for pixels in load_sample_images().images)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def turned(image: Image.Image, orientation: int) -> bytes:
    """A JPEG that looks like ``image`` once its orientation is applied, up to compression."""
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    turn = _TURNS[back]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    raw = image if turn is None else image.transpose(turn)
    return saved(raw, "JPEG", exif=exif, quality=95)


def in_form(image: Image.Image, form: str, mode: str, rng: np.random.Generator) -> bytes:
    """``image`` as a file of this format and mode; what is transparent is drawn."""
    if mode == "I;16":
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 256
        noise = rng.integers(0, 256, grey.shape, dtype=np.uint16)
        return saved(Image.fromarray(grey + noise), form)
    if mode in ("RGBA", "LA"):
        veil = Image.fromarray(rng.integers(0, 256, image.size[::-1], dtype=np.uint8))
        image = image.convert(mode)
        image.putalpha(veil)
        return saved(image, form)
    options: dict[str, object] = {}
    if mode == "P" and rng.random() < 0.5:
        options["transparency"] = int(rng.integers(0, 16))
    return saved(image.convert(mode), form, **options)


def image_files(count: int, seed: int = 0, largest: int = 320) -> Iterator[tuple[str, bytes]]:
    """(description, file): sizes from 1 pixel, a fifth of them long and thin, every form."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        form, mode = FORMS[index % len(FORMS)]
        photo = photographs()[index % 2]
        if rng.random() < 0.2:
            sides = [int(rng.integers(1, 4)), int(rng.integers(largest // 2, largest))]
            width, height = rng.permutation(sides).tolist()
        else:
            width, height = (int(rng.integers(1, largest)) for _ in range(2))
        x, y = int(rng.integers(0, 300)), int(rng.integers(0, 100))
        cut = photo.crop((x, y, x + width, y + height))
        if form == "JPEG" and mode == "RGB" and rng.random() < 0.5:
            orientation = int(rng.integers(1, 9))
            yield f"JPEG {width} x {height}, orientation {orientation}", turned(cut, orientation)
        else:
            yield f"{form} {mode} {width} x {height}", in_form(cut, form, mode, rng)


def reference_rgb(data: bytes) -> Image.Image:
    """The decoding rules once more, written plainly: upright, on white, upper eight of 16 bits."""
    image = Image.open(io.BytesIO(data))
    orientation = image.getexif().get(ORIENTATION, 1)
    turn = _TURNS[orientation]
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) // 256).astype(np.uint8))
    elif "A" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        white.alpha_composite(rgba)
        image = white
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)
