"""Files of every form become upright RGB; what is no image, or too much of one, is refused."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_cases import FORMS, image_files, in_form, photographs, reference_rgb, saved, turned
from PIL import Image

from edgewright.errors import InputError
from edgewright.preprocess.decode import MAX_PIXELS, decode, rgb_pixels

SMALL = photographs()[0].resize((40, 30))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


@pytest.mark.parametrize(("form", "mode"), FORMS)
def test_every_form_becomes_rgb(form: str, mode: str) -> None:
    data = in_form(SMALL, form, mode, np.random.default_rng(0))
    pixels = rgb_pixels(data, "it")
    assert (pixels.shape, pixels.dtype) == ((30, 40, 3), np.uint8)
    assert np.array_equal(pixels, np.asarray(reference_rgb(data)))


def test_drawn_files_decode_as_the_rules_say() -> None:
    for name, data in image_files(170, seed=1, largest=80):
        assert np.array_equal(rgb_pixels(data, name), np.asarray(reference_rgb(data))), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied(orientation: int) -> None:
    upright = np.asarray(SMALL).astype(int)
    shown = rgb_pixels(turned(SMALL, orientation), "it").astype(int)
    assert shown.shape == upright.shape
    assert np.abs(shown - upright).mean() < 6  # JPEG's loss; any other turn differs by 40 and more


def test_what_is_transparent_lies_on_white() -> None:
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    assert rgb_pixels(saved(clear, "PNG"), "it").tolist() == [[[255] * 3, [10, 20, 30]]]


def test_sixteen_bits_keep_their_upper_eight() -> None:
    deep = Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16))
    assert rgb_pixels(saved(deep, "PNG"), "it")[0, :, 0].tolist() == [0, 0, 1, 255]


def test_of_an_animation_the_first_picture_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    assert rgb_pixels(stream.getvalue(), "it")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cat.jpg is no image that is read here .it is empty.; give a PNG, JPEG"),
        (b"%PDF-1.7 and so on", "cat.jpg is no image .* begins with b'%PDF-1.7'"),
        (saved(SMALL, "PNG")[:200], "cat.jpg cannot be decoded: .*truncated"),
        (saved(photographs()[0], "JPEG")[:-400], "cat.jpg cannot be decoded: .*truncated"),
        (saved(SMALL, "PPM"), "cat.jpg is no image that is read here"),  # not in the list
        (saved(SMALL, "ICO"), "cat.jpg is no image that is read here"),
        (saved(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), "pixels of mode F"),
        (png_header(9_000, 9_000), "cat.jpg has 9000 x 9000 pixels, and at most 50 million"),
        (png_header(30_000, 30_000), "cat.jpg has more pixels, and at most 50 million"),
    ],
)  # fmt: skip
def test_what_cannot_be_decoded_is_refused_by_name(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(data, "cat.jpg")


def test_a_huge_image_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(SMALL, "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match="40 x 30 pixels"):
        decode(data, "it", max_pixels=1199)
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS  # or Pillow would warn where we read on


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_no_damage_gets_past_input_error(data: st.DataObject) -> None:
    form, mode = data.draw(st.sampled_from(FORMS))
    file = bytearray(in_form(SMALL, form, mode, np.random.default_rng(0)))
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        assert decode(bytes(file[: data.draw(st.integers(0, len(file)))]), "it").mode == "RGB"
