"""Rows given to a model that is trained already: to calibrate, to search and to certify on.

They are placed as training examples are: what is there twice counts once, near-duplicates share a
split, and a row that resembles one of another split is set aside. So no certify row resembles a
row that calibrated or, where the training examples are known, one that the model learnt from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgewright.errors import DataError
from edgewright.examples import Examples, Table, as_examples, start_rows
from edgewright.examples.sources import gather, unknown_labels
from edgewright.examples.splits import QUARANTINE, SplitShares
from edgewright.kinds import Kind

_HALVES: Final = SplitShares(
    train=0, validation=0, calibrate=0.5, search=0.5, certify=0, test=0
)  # of a table that is given to calibrate


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rows by split, and what a person should know of how they came about."""

    splits: Mapping[str, Examples]
    notes: tuple[str, ...]


def hold_out(
    calibrate: Table | None,
    certify: Table | None,
    label_names: Sequence[str],
    *,
    kind: Kind,
    seed: int,
    known: Examples | None = None,
) -> HeldOut:
    """Place given rows: of ``calibrate`` half to calibrate and half to search, ``certify`` whole.

    Args:
        calibrate: labelled or not; None where none are given.
        certify: likewise.
        label_names: the classes, in the order of the model's outputs.
        kind: of the examples that the model takes.
        seed: of the hash that halves.
        known: the examples that the model comes with; none of them is given a new place.

    Returns:
        ``Examples`` by split, for the splits of the tables given. Without labels every label is -1.

    Raises:
        DataError: a label that is none of ``label_names``; a split left without rows.
    """
    tables = {"certify": certify, "calibrate": calibrate}
    for table in tables.values():
        if table is not None and table.label_column is not None:
            _refuse_labels(table, label_names)
    given = [table for table in tables.values() if table is not None]
    _refuse_kinds(given, kind.many)
    rows = start_rows(kind, known)
    first_new = len(rows.ids)
    for split, table in tables.items():
        if table is not None:
            whole = "certify" if split == "certify" else None
            rows.place(gather([(table, whole)]), _HALVES, seed)
    new = as_examples(rows, tuple(label_names)).rows(range(first_new, len(rows.ids)))
    wanted = [name for name in ("calibrate", "search", "certify") if _is_given(name, tables)]
    splits = {name: new.split(name) for name in wanted}
    _refuse_empty(splits, tables)
    read = sum(len(table) for table in given)
    return HeldOut(splits, tuple(_notes(read, new, known)))


def _is_given(split: str, tables: Mapping[str, Table | None]) -> bool:
    return tables["certify" if split == "certify" else "calibrate"] is not None


def _refuse_kinds(tables: Sequence[Table], wanted: str) -> None:
    for table in tables:
        if table.kind.many != wanted:
            raise DataError(
                f"{table.source}: holds {table.kind.many}, and this model takes {wanted}"
            )


def _refuse_labels(table: Table, label_names: Sequence[str]) -> None:
    if unknown := unknown_labels([table], label_names):
        raise DataError(
            f"labels that the model does not know: {unknown}. It knows "
            f"{', '.join(label_names)}; correct the labels or, where `edgewright optimize` got the "
            "model without its classes, name them there with --labels, in the order of its outputs"
        )


def _refuse_empty(splits: Mapping[str, Examples], tables: Mapping[str, Table | None]) -> None:
    for name, examples in splits.items():
        if not len(examples):
            table = tables["certify" if name == "certify" else "calibrate"]
            source = table.source if table is not None else name
            raise DataError(
                f"{source}: leaves no row for {name}, once rows that are there twice or resemble "
                "those of other splits are set aside; give more rows"
            )


def _notes(read: int, new: Examples, known: Examples | None) -> Iterator[str]:
    repeated = read - len(new)
    if repeated:
        twice = "are there twice" if known is None else "are there twice or in the checkpoint"
        yield f"{repeated} of {read} rows {twice}, and count once"
    aside = len(new.split(QUARANTINE))
    if aside:
        yield (
            f"{aside} rows are set aside: they have two labels, or are near-duplicates of rows "
            "given elsewhere"
        )
