"""Reports: one HTML file that needs nothing else, readable on a laptop and a phone, light and dark.

The stages describe what to show with the blocks below; ``render_report`` lays it out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright import __version__


class Tone(StrEnum):
    """How a verdict or a point is coloured; never the only carrier of its meaning."""

    GOOD = "good"
    BAD = "bad"
    WARN = "warn"
    NEUTRAL = "neutral"


@dataclass(frozen=True)
class Headline:
    """What the reader came for: the verdict in a few words, then the figures behind it."""

    text: str
    tone: Tone
    detail: str
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str
    kind: str = field(default="paragraph", init=False)


@dataclass(frozen=True)
class DataTable:
    """Rows of cells already formatted.

    ``highlight`` marks one row by index; in the columns ``wraps`` a long text takes several lines.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    highlight: int | None = None
    wraps: Sequence[int] = ()
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Figure:
    """An inline SVG drawing (see ``edgewright.figures``)."""

    svg: str
    caption: str
    kind: str = field(default="figure", init=False)


@dataclass(frozen=True)
class ConfusionMatrix:
    """Counts of shape (classes, classes): row = label, column = prediction.

    ``rows`` names what the rows are, where there are no labels.
    """

    labels: Sequence[str]
    counts: NDArray[np.int64]
    caption: str = ""
    rows: str = "label"
    kind: str = field(default="confusion", init=False)

    def cells(self) -> list[list[dict[str, Any]]]:
        """Count and shade of each cell; the shade is the share of its row, from 0 to 1."""
        totals = np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        shades = self.counts / totals
        return [
            [
                {"count": int(count), "shade": round(float(shade), 3), "right": row == column}
                for column, (count, shade) in enumerate(zip(counts, shade_row, strict=True))
            ]
            for row, (counts, shade_row) in enumerate(zip(self.counts, shades, strict=True))
        ]


@dataclass(frozen=True)
class TextRow:
    """One example's text, or an image's name, with what is to be said about it."""

    text: str
    cells: Sequence[tuple[str, str]]
    thumbnail: str = ""  # of an image: a data URI, for the page fetches nothing


@dataclass(frozen=True)
class TextRows:
    """Examples shown with their text; a long text is cut at ``limit`` characters."""

    rows: Sequence[TextRow]
    caption: str = ""
    limit: int = 400
    kind: str = field(default="texts", init=False)


Block = Paragraph | DataTable | Figure | ConfusionMatrix | TextRows


@dataclass(frozen=True)
class Section:
    """A titled run of blocks."""

    title: str
    blocks: Sequence[Block]
    intro: str = ""


def render_report(
    *,
    title: str,
    subtitle: str,
    headline: Headline,
    sections: Sequence[Section],
    manifest_sha256: str,
) -> bytes:
    """The report as UTF-8 HTML; every text is escaped.

    ``manifest_sha256`` is of the artifact that it tells of; empty where there is none.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgewright"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    page = environment.get_template("report.html.j2").render(
        title=title,
        subtitle=subtitle,
        headline=headline,
        sections=sections,
        manifest_sha256=manifest_sha256,
        version=__version__,
    )
    return page.encode("utf-8", "replace")


def _unbroken(markup: str) -> str:
    """``markup`` with every option in a span that a line does not end in: "-" would end one."""
    return re.sub(r"--[a-z]+(?:-[a-z]+)*", r'<span class="option">\g<0></span>', str(markup))
