"""Pictures for reports: small, and inside the page."""

from __future__ import annotations

import base64
import io
from typing import Final

from PIL import Image

from edgewright.preprocess.decode import decode

SIDE: Final = 96  # pixels of the longer side


def thumbnail_uri(data: bytes, name: str) -> str:
    """A picture at most ``SIDE`` wide and high, as the data URI of a PNG or JPEG.

    Raises InputError as ``decode`` does.
    """
    image = decode(data, name)
    small = max(image.size) <= SIDE
    if not small:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "PNG" if small else "JPEG", quality=80)
    content = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/{'png' if small else 'jpeg'};base64,{content}"
