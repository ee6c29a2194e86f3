"""What an audit finds: a count over all rows, and the worst cases among those that may be shown.

What is shown is of train, validation and test. Rows of calibrate, search and certify are counted
and no more, and a row set aside is shown only where it resembles none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edgewright.examples import Image

SHOWN: Final = ("train", "validation", "test")
LISTED: Final = 20  # groups of a kind that are listed
MAX_GROUP_SHARE: Final = 0.1  # of all rows, in one near-duplicate group
_MIN_GROUP_ROWS: Final = 10  # a large share of fewer rows says only that the table is small
_TEXT_CHARACTERS: Final = 300


@dataclass(frozen=True)
class Group:
    """Rows that belong together: one example read several times, or examples that are alike.

    ``labels`` counts the rows by label; ``places`` tells the first rows as the reader found them.
    """

    example_id: str
    content: str | Image  # of the first of them
    split: str
    rows: int
    labels: Mapping[str, int]
    places: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What tells a person which example it is: the text, or the image's name."""
        return text_of(self.content)

    def to_json(self) -> dict[str, Any]:
        """As audit.json holds it, the text cut."""
        return {
            "example_id": self.example_id,
            **content_json(self.content),
            "split": self.split,
            "rows": self.rows,
            "labels": dict(self.labels),
            "places": list(self.places),
        }


@dataclass(frozen=True)
class Found:
    """How often something was found, and the worst cases that may be shown."""

    count: int = 0
    worst: tuple[Group, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As audit.json holds it."""
        return {"count": self.count, "worst": [group.to_json() for group in self.worst]}


def has_dominant_group(largest: int, rows: int) -> bool:
    """Whether one near-duplicate group holds so many of the rows that figures speak of it."""
    return largest >= _MIN_GROUP_ROWS and largest > MAX_GROUP_SHARE * rows


def text_of(content: str | Image) -> str:
    """The text, or the image's name."""
    return content if isinstance(content, str) else content.name


def content_json(content: str | Image) -> dict[str, str]:
    """As audit.json holds it: the text, cut, or the image's name."""
    return {"text" if isinstance(content, str) else "image": cut(text_of(content))}


def cut(text: str, characters: int = _TEXT_CHARACTERS) -> str:
    """The text on one line, at most ``characters`` long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= characters else f"{flat[: characters - 1]}…"
