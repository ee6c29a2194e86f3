"""An example as a report shows it: a text by itself, an image by its name and a thumbnail."""

from __future__ import annotations

from collections.abc import Sequence

from edgewright.examples import Image
from edgewright.preprocess.thumbnails import thumbnail_uri
from edgewright.report import TextRow


def shown_example(content: str | Image, cells: Sequence[tuple[str, str]]) -> TextRow:
    """``content`` with what is to be said about it, as (name, value)."""
    if isinstance(content, str):
        return TextRow(content, cells)
    return TextRow(content.name, cells, thumbnail_uri(content.read(), content.name))
