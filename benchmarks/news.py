"""BBC News in three parts that share no near-duplicate, the same for every contender and seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.job import write_rows
from demo import bbc_news
from edgewright.examples.near_duplicates import near_duplicate_pairs

_SEED: Final = 0  # of the draw of rows; the seeds of a benchmark are those of training

Row = tuple[str, str]  # text, label


@dataclass(frozen=True)
class News:
    """Rows to train on, to validate every epoch on, and to score on afterwards."""

    train: list[Row]
    validation: list[Row]
    heldout: list[Row]

    @classmethod
    def draw(cls, train: int, validation: int, heldout: int) -> News:
        """So many articles, or as many as there are, none nearly another of them."""
        articles = bbc_news()
        random.Random(_SEED).shuffle(articles)
        articles = articles[: 2 * (train + validation + heldout)]  # enough, duplicates left out
        again = {later for _, later in near_duplicate_pairs([text for text, _ in articles])}
        rows, seen = [], set()
        for index, (text, label) in enumerate(articles):
            content = " ".join(text.split())
            if index not in again and content not in seen:
                seen.add(content)
                rows.append((text, label))
        cut = train + validation
        return cls(rows[:train], rows[train:cut], rows[cut : cut + heldout])

    def write(self, folder: Path) -> tuple[Path, Path]:
        """As csv: train and validation with their split, and the held-out rows."""
        data, heldout = folder / "data.csv", folder / "heldout.csv"
        rows = [(*row, "train") for row in self.train]
        rows += [(*row, "validation") for row in self.validation]
        write_rows(data, rows, ("text", "label", "split"))
        write_rows(heldout, self.heldout, ("text", "label"))
        return data, heldout

    @property
    def counts(self) -> dict[str, int]:
        """Rows by part."""
        return {
            "train": len(self.train),
            "validation": len(self.validation),
            "heldout": len(self.heldout),
        }
