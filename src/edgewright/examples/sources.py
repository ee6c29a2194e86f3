"""The tables examples are built from, and their rows gathered by content."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from edgewright.errors import ConfigError, DataError
from edgewright.examples.identity import content_id
from edgewright.examples.splits import foremost
from edgewright.kinds import Kind
from edgewright.tables import Table
from edgewright.tables.image_folder import Image

_SHOWN: Final = 5  # rows named in a message


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
        for table in self.tables:
            if table.kind is not self.kind:
                raise DataError(
                    f"{table.source}: holds {table.kind.many}, and {self.tables[0].source} "
                    f"{self.kind.many}; a model learns from one kind of example"
                )

    @property
    def kind(self) -> Kind:
        """Texts or images."""
        return self.tables[0].kind

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


def unknown_labels(tables: Iterable[Table], known: Collection[str]) -> str:
    """Where ``tables`` have labels that are none of ``known``, the first few; empty: nowhere."""
    places = [
        f"{table.place(row)}: '{label[:60]}'"
        for table in tables
        for row, label in enumerate(table.labels)
        if label not in known
    ]
    unlisted = len(places) - _SHOWN
    return ", ".join(places[:_SHOWN]) + (f", and {unlisted} more rows" if unlisted > 0 else "")


@dataclass(slots=True)
class Gathered:
    """What all rows of one id come to."""

    content: str | Image
    label: str
    given: str | None
    conflicting: bool = False

    def merge(self, content: str | Image, label: str, given: str | None) -> None:
        """Take in another row, so that the order of rows decides nothing."""
        self.conflicting |= label != self.label
        self.content = min(self.content, content, key=_order)
        self.label = min(self.label, label)
        self.given = foremost(self.given, given)


def gather(batch: Sequence[tuple[Table, str | None]]) -> dict[str, Gathered]:
    """The rows of ``batch`` by id, in the order of ids."""
    gathered: dict[str, Gathered] = {}
    for content, label, given in _rows(batch):
        key = content_id(content)
        if key in gathered:
            gathered[key].merge(content, label, given)
        else:
            gathered[key] = Gathered(content, label, given)
    return dict(sorted(gathered.items()))


def _rows(
    batch: Sequence[tuple[Table, str | None]],
) -> Iterator[tuple[str | Image, str, str | None]]:
    """(content, label or "", held-out split it is given to) of every row."""
    for table, whole in batch:
        labels = table.labels or [""] * len(table)
        splits = table.splits or [whole] * len(table)
        contents: Sequence[str | Image] = table.contents
        for content, label, split in zip(contents, labels, splits, strict=True):
            yield content, label, None if split == "train" else split


def _order(content: str | Image) -> str:
    return content if isinstance(content, str) else content.name
