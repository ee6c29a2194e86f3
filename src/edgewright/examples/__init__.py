"""Labelled texts or images with stable ids and splits, and how a checkpoint keeps them.

An example's id is the hash of its content (see ``identity``). Rows of one id are one example; if
they disagree on the label, nobody knows which is right, and the example is quarantined. Rows are
ordered by id within the table they came with, tables in the order they were added, so neither ids
nor splits depend on the order of a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.errors import DataError, IntegrityError
from edgewright.examples.columns_file import column_names, read_columns, write_columns
from edgewright.examples.identity import content_id, example_id, image_id
from edgewright.examples.image_store import COLUMN, ImageStore, write_images
from edgewright.examples.rows import Rows
from edgewright.examples.sound_images import without_broken_images
from edgewright.examples.sources import Sources, gather, unknown_labels
from edgewright.examples.split_report import SplitReport, absent_classes, label_twins
from edgewright.examples.splits import QUARANTINE, SplitShares
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.tables import Table, only_texts, read_table
from edgewright.tables.columns import SPLITS, Columns
from edgewright.tables.image_folder import Image

__all__ = [
    "QUARANTINE",
    "SPLITS",
    "Columns",
    "Examples",
    "Image",
    "Sources",
    "SplitReport",
    "SplitShares",
    "Table",
    "build_examples",
    "content_id",
    "example_id",
    "image_id",
    "read_table",
    "unknown_labels",
    "without_broken_images",
]

EXAMPLES_FILE: Final = "examples.parquet"
SPLITS_FILE: Final = "splits.parquet"


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples in a fixed order, one entry a row in each column.

    Attributes:
        ids: ``content_id`` of each example, all different.
        contents: the texts as they were read, or images, which are read when they are asked for.
        labels: (rows,) int64, index into ``label_names``.
        splits: a name of ``SPLITS``, or "quarantine".
        groups: id of the first row of the near-duplicate group; rows of one group share a split.
        label_names: the classes, in the order of the model's outputs.
        kind: texts or images.
    """

    ids: list[str]
    contents: Sequence[str] | Sequence[Image]
    labels: NDArray[np.int64]
    splits: list[str]
    groups: list[str]
    label_names: tuple[str, ...]
    kind: Kind = TEXT

    @property
    def texts(self) -> list[str]:
        """The texts; DataError where the examples are images."""
        return only_texts(self.contents, self.kind, "the examples")

    @property
    def images(self) -> list[Image]:
        """The images; DataError where the examples are texts."""
        if self.kind is not IMAGE:
            raise DataError("the examples are texts, and this works on images alone")
        return [each for each in self.contents if not isinstance(each, str)]

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, name: str) -> Examples:
        """The rows of one split (or of "quarantine"), order kept."""
        return self.rows(index for index, split in enumerate(self.splits) if split == name)

    def one_per_group(self) -> Examples:
        """The first row of each near-duplicate group, order kept: no two of them are alike."""
        first: dict[str, int] = {}
        for index, group in enumerate(self.groups):
            first.setdefault(group, index)
        return self.rows(first.values())

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows by split ("quarantine" last) and class, zeros included."""
        counts = {split: dict.fromkeys(self.label_names, 0) for split in (*SPLITS, QUARANTINE)}
        for split, label in zip(self.splits, self.labels.tolist(), strict=True):
            counts[split][self.label_names[label]] += 1
        return counts

    def save(self, folder: Path) -> None:
        """Write examples.parquet (id, text or image, label) and splits.parquet (id, split, group).

        Images are stored as the files that they were, with their names. The same examples give the
        same bytes under the same version of pyarrow.
        """
        names = [self.label_names[label] for label in self.labels.tolist()]
        if self.kind is IMAGE:
            write_images(folder / EXAMPLES_FILE, self.ids, self.images, names)
        else:
            write_columns(
                folder / EXAMPLES_FILE, {"id": self.ids, "text": self.texts, "label": names}
            )
        write_columns(
            folder / SPLITS_FILE, {"id": self.ids, "split": self.splits, "group": self.groups}
        )

    @classmethod
    def load(cls, folder: Path, label_names: Sequence[str]) -> Examples:
        """Read what ``save`` wrote.

        Raises IntegrityError, naming the file, when one is missing or unreadable, when an id is
        not that of its text, or when ids, splits or labels do not fit each other.
        """
        if COLUMN in column_names(folder / EXAMPLES_FILE):
            return cls._load(folder, label_names, *_read_images(folder / EXAMPLES_FILE), IMAGE)
        rows = read_columns(folder / EXAMPLES_FILE, ("id", "text", "label"))
        if rows["id"] != [example_id(text) for text in rows["text"]]:
            raise IntegrityError(
                f"{folder / EXAMPLES_FILE}: an id is not that of its text; make the checkpoint anew"
            )
        return cls._load(folder, label_names, rows, rows["text"], TEXT)

    @classmethod
    def _load(
        cls,
        folder: Path,
        label_names: Sequence[str],
        rows: dict[str, list[Any]],
        contents: Sequence[str] | Sequence[Image],
        kind: Kind,
    ) -> Examples:
        """The rest of ``load``; ``rows`` has the columns id and label."""
        placed = read_columns(folder / SPLITS_FILE, ("id", "split", "group"))
        index_of = {name: index for index, name in enumerate(label_names)}
        faults = [
            (EXAMPLES_FILE, f"a label is none of {', '.join(label_names)}",
             not index_of.keys() >= set(rows["label"])),
            (EXAMPLES_FILE, "an id is there twice", len(set(rows["id"])) < len(rows["id"])),
            (SPLITS_FILE, f"its ids are not those of {EXAMPLES_FILE}", placed["id"] != rows["id"]),
            (SPLITS_FILE, f"a split is none of {', '.join(SPLITS)}",
             not {*SPLITS, QUARANTINE} >= set(placed["split"])),
        ]  # fmt: skip
        for file, fault, is_there in faults:
            if is_there:
                raise IntegrityError(f"{folder / file}: {fault}; make the checkpoint anew")
        labels = np.array([index_of[name] for name in rows["label"]], dtype=np.int64)
        return cls(
            rows["id"], contents, labels, placed["split"], placed["group"], tuple(label_names), kind
        )

    def rows(self, indices: Iterable[int]) -> Examples:
        """The rows of these numbers (0-based), in their order."""
        chosen = list(indices)
        return Examples(
            [self.ids[i] for i in chosen],
            _chosen(self.contents, chosen),
            self.labels[chosen],
            [self.splits[i] for i in chosen],
            [self.groups[i] for i in chosen],
            self.label_names,
            self.kind,
        )


def build_examples(
    sources: Sources,
    *,
    shares: SplitShares,
    seed: int,
    previous: Examples | None = None,
    allow_new_labels: bool = False,
) -> tuple[Examples, SplitReport]:
    """Give every row an id, collapse duplicates, and place each example in a split for good.

    Args:
        sources: the tables read.
        shares: of the splits; those that are given rows are left out and the rest scaled.
        seed: of the hash that splits.
        previous: examples of an earlier checkpoint; they keep order, label, split and group, and
            new rows follow them.
        allow_new_labels: whether ``sources`` may hold classes that ``previous`` lacks; they come
            after its own in ``label_names``.

    Raises:
        DataError: one class only, classes unknown to ``previous``, or no two classes for train.
    """
    label_names = _label_names(sources, previous, allow_new_labels)
    shares = shares.without(sources.given_splits())
    if previous is not None and previous.kind is not sources.kind:
        raise DataError(
            f"{sources.names}: holds {sources.kind.many}, and the checkpoint was made from "
            f"{previous.kind.many}"
        )
    rows = start_rows(sources.kind, previous)
    for batch in sources.batches():
        rows.place(gather(batch), shares, seed)
    examples = as_examples(rows, label_names)
    report = _report(sources, rows, examples, shares, seed)
    if np.unique(examples.split("train").labels).size < 2:
        raise DataError(
            f"{sources.names}: fewer than two classes are left to train on, of {report.rows_read} "
            f"rows read ({report.exact_duplicates} exact duplicates, {report.conflicting} texts "
            f"with more than one label, {report.bridging + report.leaked} quarantined near-"
            "duplicates); give more rows, or hold out fewer"
        )
    return examples, report


def start_rows(kind: Kind, previous: Examples | None) -> Rows:
    """Rows to add to, beginning with those of ``previous``, which stay as they are."""
    rows = Rows(kind)
    if previous is not None:
        names = [previous.label_names[label] for label in previous.labels.tolist()]
        rows.extend(previous.ids, previous.contents, names, previous.splits, previous.groups)
    return rows


def as_examples(rows: Rows, label_names: tuple[str, ...]) -> Examples:
    """The rows so far; a label that is none of ``label_names`` is -1."""
    index_of = {name: index for index, name in enumerate(label_names)}
    labels = np.array([index_of.get(name, -1) for name in rows.labels], dtype=np.int64)
    return Examples(
        rows.ids, rows.contents, labels, rows.splits, rows.groups, label_names, rows.kind
    )


def _label_names(
    sources: Sources, previous: Examples | None, allow_new_labels: bool
) -> tuple[str, ...]:
    """The classes: those of ``previous`` as they stand, then new ones, sorted."""
    known = previous.label_names if previous is not None else ()
    found = {label for table in sources.tables for label in table.labels}
    new = found.difference(known)
    if previous is not None and new and not allow_new_labels:
        _refuse_labels(sources, known)
    if len(found.union(known)) < 2:
        table = sources.tables[0]
        raise DataError(
            f"{sources.names}: every row has the label '{min(found, default='')}' (column "
            f"'{table.label_column}'); classification needs two classes or more"
        )
    as_numbers = all(name.isdecimal() for name in new)
    return (*known, *sorted(new, key=lambda name: (int(name) if as_numbers else 0, name)))


def _refuse_labels(sources: Sources, known: Sequence[str]) -> None:
    raise DataError(
        f"labels that the checkpoint does not know: {unknown_labels(sources.tables, known)}. It "
        f"knows {', '.join(known)}. Correct the labels, or pass --new-labels to add classes"
    )


def _report(
    sources: Sources, rows: Rows, examples: Examples, shares: SplitShares, seed: int
) -> SplitReport:
    counts = examples.counts()
    rows_read = sum(len(table) for table in sources.tables)
    added, contradicting = rows.tally["added"], rows.tally["contradicting"]
    return SplitReport(
        rows_read=rows_read,
        exact_duplicates=rows_read - contradicting - added,
        contradicting=contradicting,
        added=added,
        conflicting=rows.tally["conflicting"],
        bridging=rows.tally["bridging"],
        leaked=rows.tally["leaked"],
        near_duplicate_pairs=rows.tally["pairs"],
        largest_group=max(Counter(examples.groups).values()),
        moved_to_train=rows.tally["moved"],
        rows={split: sum(by_class.values()) for split, by_class in counts.items()},
        absent_classes=absent_classes(counts),
        label_twins=label_twins(examples.label_names),
        shares=str(shares),
        seed=seed,
        notes=[note for table in sources.tables for note in table.notes],
    )


def _chosen(
    contents: Sequence[str] | Sequence[Image], rows: Sequence[int]
) -> list[str] | list[Image]:
    picked: list[Any] = [contents[row] for row in rows]
    return picked


def _read_images(path: Path) -> tuple[dict[str, list[Any]], Sequence[Image]]:
    store = ImageStore(path)
    store.check_ids()
    return store.columns, store.images()
