"""Rows on their way into splits: those that are placed already, and new ones that join them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from edgewright.examples.near_duplicates import NearDuplicates
from edgewright.examples.near_images import NearImages, signatures
from edgewright.examples.sources import Gathered
from edgewright.examples.splits import COMPARED_ROWS, QUARANTINE, Near, Placement, SplitShares
from edgewright.kinds import IMAGE, Kind


class Rows:
    """The columns of examples under construction, which only grow, and a tally of what happened."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.ids: list[str] = []
        self.contents: list[Any] = []  # str or Image
        self.labels: list[str] = []
        self.splits: list[str] = []
        self.groups: list[str] = []
        self.tally: Counter[str] = Counter()

    def place(self, gathered: dict[str, Gathered], shares: SplitShares, seed: int) -> None:
        """Append the examples that are new, each in its split.

        Where train has a share at all, rows move into it until it has two classes.
        """
        new = self._new(gathered)
        sound = {key: example for key, example in new.items() if not example.conflicting}
        kept = [row for row, split in enumerate(self.splits) if split != QUARANTINE]
        contents = [self.contents[row] for row in kept] + [e.content for e in sound.values()]
        near = find_near(contents, self.kind)
        placement = Placement(
            [self.ids[row] for row in kept] + list(sound),
            [(self.splits[row], self.groups[row]) for row in kept],
            [example.given for example in sound.values()],
            shares=shares,
            seed=seed,
        )
        placement.place(near)
        labels = [self.labels[row] for row in kept] + [e.label for e in sound.values()]
        self.tally["added"] += len(new)
        if shares.train:
            self.tally["moved"] += placement.fill_train(labels, near)
        self.tally["bridging"] += placement.bridging
        self.tally["leaked"] += placement.leaked
        self.tally["conflicting"] += len(new) - len(sound)
        self.tally["pairs"] += _pairs_with_new(near, len(kept))
        placed = dict(zip(sound, placement.new_rows(), strict=True))
        rows = [placed.get(key, (QUARANTINE, key)) for key in new]
        self.extend(
            list(new),
            [example.content for example in new.values()],
            [example.label for example in new.values()],
            [split for split, _ in rows],
            [group for _, group in rows],
        )

    def _new(self, gathered: dict[str, Gathered]) -> dict[str, Gathered]:
        """What is not there yet; a text that is there keeps the label it has."""
        standing = dict(zip(self.ids, zip(self.labels, self.splits, strict=True), strict=True))
        for key in gathered.keys() & standing.keys():
            label, split = standing[key]
            differs = gathered[key].conflicting or gathered[key].label != label
            self.tally["contradicting"] += differs and split != QUARANTINE
        return {key: row for key, row in gathered.items() if key not in standing}

    def extend(
        self,
        ids: Sequence[str],
        contents: Sequence[Any],
        labels: Sequence[str],
        splits: Sequence[str],
        groups: Sequence[str],
    ) -> None:
        """Append rows that are placed already; one entry a row in each."""
        self.ids += ids
        self.contents += contents
        self.labels += labels
        self.splits += splits
        self.groups += groups


def find_near(contents: Sequence[Any], kind: Kind) -> Near:
    """The near-duplicates among texts (str) or images; DataError where one cannot be decoded."""
    if kind is IMAGE:
        return NearImages(signatures(contents))
    return NearDuplicates(contents)


def _pairs_with_new(near: Near, first_new: int) -> int:
    """How many near-duplicate pairs have a row from ``first_new`` on (see SplitReport)."""
    pairs = 0
    for rows in near.components:
        if len(rows) > COMPARED_ROWS:
            pairs += len(rows) - 1
        elif len(rows) > 1 and rows[-1] >= first_new:
            pairs += sum(later >= first_new for _, later in near.pairs(rows))
    return pairs
