"""What makes two examples the same one."""

from __future__ import annotations

import unicodedata
from hashlib import sha256

from edgewright.tables.image_folder import Image


def example_id(text: str) -> str:
    """32 hexadecimal digits: the first half of SHA-256 of the normalised text.

    Normalised is: Unicode NFC, runs of white space (as Python's ``str.split`` sees it) made one
    space, none at the ends. Case counts.
    """
    normalised = " ".join(unicodedata.normalize("NFC", text).split())
    return sha256(normalised.encode()).hexdigest()[:32]


def image_id(data: bytes) -> str:
    """32 hexadecimal digits: the first half of SHA-256 of the file's bytes.

    Of the bytes, not of the pixels: those of a JPEG may differ by a level between two versions of
    a decoder, and an id must not. The same pixels in another file are near-duplicates.
    """
    return sha256(data).hexdigest()[:32]


def content_id(content: str | Image) -> str:
    """``example_id`` of a text, ``image_id`` of an image, whose file is read."""
    return example_id(content) if isinstance(content, str) else image_id(content.read())
