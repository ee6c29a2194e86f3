"""What is sent: texts or images of the user's, or some made up by a seed."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

# Common words of one or two tokens each, so that a number of words means about as many tokens
# to one tokenizer as to another.
_WORDS: Final = (
    *("the", "a", "of", "in", "to", "and", "on", "for", "with", "at", "from", "by", "about"),
    *("market", "share", "price", "bank", "rate", "growth", "profit", "company", "trade"),
    *("vote", "law", "minister", "party", "election", "court", "police", "school", "country"),
    *("music", "film", "actor", "match", "team", "goal", "player", "coach", "season", "win"),
    *("phone", "network", "computer", "user", "data", "report", "game", "city", "river", "sun"),
    *("year", "week", "month", "people", "good", "new", "old", "large", "small", "early", "late"),
    *("said", "told", "made", "found", "went", "came", "gave", "took", "left", "open", "after"),
)
SYNTHETIC_TEXTS: Final = 256
SYNTHETIC_IMAGES: Final = 16
_SQUARE: Final = 8  # pixels; a picture of single random pixels is larger than any photograph


@dataclass(frozen=True)
class Inputs:
    """What is classified, in turn and over again: texts, or whole image files."""

    items: Sequence[str] | Sequence[bytes]
    told: str  # "synthetic texts of 12 words"

    @property
    def kind(self) -> str:
        """ "text" or "image"."""
        return "text" if isinstance(self.items[0], str) else "image"

    def calls(self, rows: int, most: int) -> Iterator[Sequence[str] | Sequence[bytes]]:
        """What each call holds: ``rows`` of them, until all were taken, in ``most`` calls."""
        count = len(self.items)
        for call in range(min(-(-count // rows), most)):
            places = range(call * rows, call * rows + rows)
            yield [self.items[place % count] for place in places]  # type: ignore[misc]  # of one kind


def synthetic_texts(words: int, seed: int) -> Inputs:
    """Texts of so many words."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(_WORDS, k=words)) for _ in range(SYNTHETIC_TEXTS)]
    return Inputs(texts, f"synthetic texts of {words} {'word' if words == 1 else 'words'}")


def synthetic_images(size: int, seed: int) -> Inputs:
    """PNG files of ``size`` x ``size`` pixels, of squares in colours that the seed draws."""
    rng = random.Random(seed)
    images = [_png(size, rng) for _ in range(SYNTHETIC_IMAGES)]
    return Inputs(images, f"synthetic images of {size} x {size} pixels")


def _png(size: int, rng: random.Random) -> bytes:
    across = -(-size // _SQUARE)
    lines = []
    for _ in range(across):
        colours = [rng.randbytes(3) for _ in range(across)]
        line = b"".join(colour * _SQUARE for colour in colours)[: 3 * size]
        lines += [b"\0" + line] * _SQUARE  # 0: the line is not filtered
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)  # 8 bits of red, green and blue
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines[:size]))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
