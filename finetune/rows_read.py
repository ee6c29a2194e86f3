"""The rows of a run's files as they were read, before those that repeat became one example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgewright.examples import QUARANTINE, Examples, Sources, Table, content_id
from edgewright.examples.rows import find_near
from edgewright.finetune.findings import LISTED, SHOWN, Found, Group

_PLACES: Final = 5  # rows of a group whose place is told


@dataclass(frozen=True)
class _Row:
    label: str
    given: str | None  # the held-out split that it was given to
    table: Table
    number: int

    @property
    def place(self) -> str:
        return self.table.place(self.number)


@dataclass(frozen=True, eq=False)
class RowsRead:
    """What became of the rows; in full of those whose content repeats, or that are asked for.

    Attributes:
        examples: what the rows became, with those of earlier checkpoints.
        kept: the rows kept in full, by their id.
        aside: ids of examples given to a held-out split that are set aside.
        hidden: ids set aside that resemble a row which must not be shown.
    """

    examples: Examples
    number_of: Mapping[str, int]  # id -> place in examples
    kept: Mapping[str, Sequence[_Row]]
    aside: Collection[str] = ()
    hidden: Collection[str] = ()

    @classmethod
    def of(cls, sources: Sources | None, examples: Examples, keep: Collection[str]) -> RowsRead:
        """Go through the tables once more; ``keep`` holds ids to keep beside the repeated ones."""
        number_of = {key: number for number, key in enumerate(examples.ids)}
        if sources is None:
            return cls(examples, number_of, {})
        keys = [content_id(each) for table in _tables(sources) for each in table.contents]
        wanted = {key for key, count in Counter(keys).items() if count > 1}.union(keep)
        kept: dict[str, list[_Row]] = {}
        aside: set[str] = set()
        for key, row in zip(keys, _rows(sources), strict=True):
            if key in wanted:
                kept.setdefault(key, []).append(row)
            if row.given is not None and examples.splits[number_of[key]] == QUARANTINE:
                aside.add(key)
        quarantined = [
            number_of[key] for key in kept if examples.splits[number_of[key]] == QUARANTINE
        ]
        hidden = _resembling_hidden(examples, sorted(quarantined))
        return cls(examples, number_of, kept, aside, hidden)

    def exact_duplicates(self) -> Found:
        """Rows beyond the first of each text or image."""
        keys = [key for key, rows in self.kept.items() if len(rows) > 1]
        return Found(sum(len(self.kept[key]) - 1 for key in keys), self._worst(keys))

    def conflicts(self, report: Mapping[str, Any]) -> Found:
        """Examples with more than one label, or with another than the checkpoint has."""
        keys = [key for key in self.kept if self._is_mixed(key)]
        counted = report["contradicting"] + report["conflicting"]
        return Found(max(counted, len(keys)), self._worst(keys))

    def leaks(self) -> Found:
        """Examples given to more than one split; rows given to none are there to be trained on."""
        keys = [key for key, rows in self.kept.items() if len({row.given for row in rows}) > 1]
        return Found(len(keys), self._worst(keys))

    def near_leaks(self, report: Mapping[str, Any]) -> int:
        """Rows set aside because they resemble a row given to another split."""
        return int(report["leaked"]) + sum(not self._is_mixed(key) for key in self.aside)

    def places(self, key: str) -> tuple[str, ...]:
        """Where the first rows of an example are; none of one that is not kept."""
        return tuple(row.place for row in self.kept.get(key, ())[:_PLACES])

    def _is_mixed(self, key: str) -> bool:
        return len({row.label for row in self.kept.get(key, ())}) > 1

    def _worst(self, keys: Sequence[str]) -> tuple[Group, ...]:
        """Those of most rows, of what may be shown."""
        shown = filter(self._is_shown, keys)
        worst = sorted(shown, key=lambda key: (-len(self.kept[key]), key))[:LISTED]
        return tuple(self._group(key) for key in worst)

    def _is_shown(self, key: str) -> bool:
        split = self.examples.splits[self.number_of[key]]
        return split in SHOWN or (split == QUARANTINE and key not in self.hidden)

    def _group(self, key: str) -> Group:
        number, rows = self.number_of[key], self.kept[key]
        return Group(
            example_id=key,
            content=self.examples.contents[number],
            split=self.examples.splits[number],
            rows=len(rows),
            labels=dict(sorted(Counter(row.label for row in rows).items())),
            places=self.places(key),
        )


def _tables(sources: Sources) -> Iterator[Table]:
    return (table for batch in sources.batches() for table, _ in batch)


def _rows(sources: Sources) -> Iterator[_Row]:
    """Every row, in the order of ``_tables``."""
    for batch in sources.batches():
        for table, whole in batch:
            splits = table.splits or [whole] * len(table)
            for number, (label, split) in enumerate(zip(table.labels, splits, strict=True)):
                yield _Row(label, None if split == "train" else split, table, number)


def _resembling_hidden(examples: Examples, aside: Sequence[int]) -> frozenset[str]:
    """Ids of rows ``aside`` that a chain of near-duplicates ties to a row not to be shown."""
    if not aside:
        return frozenset()
    others = [row for row, split in enumerate(examples.splits) if split not in (*SHOWN, QUARANTINE)]
    near = find_near([examples.contents[row] for row in (*aside, *others)], examples.kind)
    return frozenset(
        examples.ids[aside[member]]
        for members in near.components
        if members[-1] >= len(aside)
        for member in members
        if member < len(aside)
    )
