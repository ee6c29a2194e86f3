"""What became of the rows: counts told to the user and kept in the manifest."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from edgewright.tables.columns import SPLITS

_SPACING: Final = re.compile(r"(?<=\w)[\s_-]+(?=\w)")


@dataclass(frozen=True)
class SplitReport:
    """Counts of one build of examples. ``rows_read = exact_duplicates + contradicting + added``.

    Attributes:
        rows_read: rows of all tables of this build.
        exact_duplicates: rows whose text came before; each is kept once.
        contradicting: texts that an earlier checkpoint, or a table before those added, has in a
            split under another label, which stands.
        added: examples new in this build, quarantined ones included.
        conflicting: of those, the ones quarantined because rows of one text differ in label.
        bridging: those quarantined because they resemble rows of two splits.
        leaked: those quarantined because they resemble a row given as held out.
        near_duplicate_pairs: verified pairs with at least one new row; of a group of more than
            ``splits.COMPARED_ROWS`` rows only the pairs that hold it together are counted.
        largest_group: rows in the largest near-duplicate group.
        moved_to_train: rows moved there so that it has two classes.
        rows: rows by split, "quarantine" last, those of earlier checkpoints included.
        absent_classes: by split, the classes it has no row of; splits that have all are left out.
        label_twins: labels that differ in case, spacing or Unicode form alone; each stays a class.
        shares: of the splits, as "56/8/4/4/20/8", after those given rows were left out.
        seed: of the hash that splits.
        notes: what was left out while reading.
    """

    rows_read: int
    exact_duplicates: int
    contradicting: int
    added: int
    conflicting: int
    bridging: int
    leaked: int
    near_duplicate_pairs: int
    largest_group: int
    moved_to_train: int
    rows: dict[str, int]
    absent_classes: dict[str, list[str]]
    label_twins: list[list[str]]
    shares: str
    seed: int
    notes: list[str]

    @property
    def quarantined(self) -> int:
        """New examples that are in no split."""
        return self.conflicting + self.bridging + self.leaked

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON holds them."""
        return {**asdict(self), "quarantined": self.quarantined}


def absent_classes(counts: Mapping[str, Mapping[str, int]]) -> dict[str, list[str]]:
    """By split, the classes without a row; ``counts`` as ``Examples.counts`` gives them."""
    absent = {s: [name for name, rows in counts[s].items() if rows == 0] for s in SPLITS}
    return {split: names for split, names in absent.items() if names}


def label_twins(label_names: Iterable[str]) -> list[list[str]]:
    """Labels that differ in case, spacing or Unicode form alone, in groups.

    Hyphens and underscores inside a label are spaces; in front of it a hyphen is a sign.
    """
    twins: dict[str, list[str]] = {}
    for name in sorted(label_names):
        spaced = _SPACING.sub(" ", unicodedata.normalize("NFKC", name).casefold())
        twins.setdefault(spaced, []).append(name)
    return [names for names in twins.values() if len(names) > 1]
