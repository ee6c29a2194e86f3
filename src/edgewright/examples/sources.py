"""The tables examples are built from, and their rows gathered by content."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from edgewright.errors import ConfigError, DataError
from edgewright.examples.splits import foremost
from edgewright.tables import Table


def example_id(text: str) -> str:
    """32 hexadecimal digits: the first half of SHA-256 of the normalised text.

    Normalised is: Unicode NFC, runs of white space (as Python's ``str.split`` sees it) made one
    space, none at the ends. Case counts.
    """
    normalised = " ".join(unicodedata.normalize("NFC", text).split())
    return sha256(normalised.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Sources:
    """The tables that examples are built from.

    ``main`` is split by hash, but for rows that its split column gives to a held-out split. Its
    rows marked "train" are those to share out: over train and every split that is given no rows.
    ``validation`` and ``test`` go there whole. ``added`` comes after all others, so that it moves
    none of their rows.
    """

    main: Table | None = None
    validation: Table | None = None
    test: Table | None = None
    added: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        for option, table in (("--validation", self.validation), ("--test", self.test)):
            if table is not None and table.splits is not None:
                raise DataError(
                    f"{table.source}: comes in splits of its own, so {option} cannot tell which to "
                    "take; give one split by itself"
                )
        if not self.tables:
            raise ConfigError("no examples: give a file, or --add MORE with --from CHECKPOINT")

    @property
    def tables(self) -> tuple[Table, ...]:
        """All tables there are."""
        return tuple(table for batch in self.batches() for table, _ in batch)

    @property
    def names(self) -> str:
        """Where the tables come from, for messages."""
        return ", ".join(table.source for table in self.tables)

    def batches(self) -> list[list[tuple[Table, str | None]]]:
        """Tables that are placed at once, each with the split that all its rows are given to."""
        first = ((self.main, None), (self.validation, "validation"), (self.test, "test"))
        batches: list[list[tuple[Table, str | None]]] = [
            [(table, given) for table, given in first if table is not None],
            [(table, None) for table in self.added],
        ]
        return [batch for batch in batches if batch]

    def given_splits(self) -> set[str]:
        """The held-out splits that are given rows."""
        given = {split for table in self.tables for split in table.splits or () if split}
        given |= {split for batch in self.batches() for _, split in batch if split}
        return given - {"train"}


@dataclass(slots=True)
class Gathered:
    """What all rows of one id come to."""

    text: str
    label: str
    given: str | None
    conflicting: bool = False

    def merge(self, text: str, label: str, given: str | None) -> None:
        """Take in another row, so that the order of rows decides nothing."""
        self.conflicting |= label != self.label
        self.text = min(self.text, text)
        self.label = min(self.label, label)
        self.given = foremost(self.given, given)


def gather(batch: Sequence[tuple[Table, str | None]]) -> dict[str, Gathered]:
    """The rows of ``batch`` by id, in the order of ids."""
    gathered: dict[str, Gathered] = {}
    for text, label, given in _rows(batch):
        key = example_id(text)
        if key in gathered:
            gathered[key].merge(text, label, given)
        else:
            gathered[key] = Gathered(text, label, given)
    return dict(sorted(gathered.items()))


def _rows(
    batch: Sequence[tuple[Table, str | None]],
) -> Iterator[tuple[str, str, str | None]]:
    """(text, label, held-out split it is given to) of every row."""
    for table, whole in batch:
        splits = table.splits or [whole] * len(table)
        for text, label, split in zip(table.texts, table.labels, splits, strict=True):
            yield text, label, None if split == "train" else split
