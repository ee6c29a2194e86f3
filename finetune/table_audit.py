"""What is wrong with the examples as read, told without a model: the first half of the audit."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgewright.examples import QUARANTINE, SPLITS, Examples
from edgewright.examples.blank_images import blank_images
from edgewright.finetune.data import Dataset
from edgewright.finetune.findings import LISTED, SHOWN, Found, Group
from edgewright.finetune.rows_read import RowsRead
from edgewright.kinds import IMAGE, Kind

# Of Unicode's general categories those that leave no ink; unassigned ones may be new emoji.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"})
_NOTHING_READ: Final = {"contradicting": 0, "conflicting": 0, "leaked": 0}


@dataclass(frozen=True, eq=False)
class TableAudit:
    """Counts over every row, and the worst groups among those that may be shown.

    Attributes:
        rows: by split.
        kind: texts or images.
        exact_duplicates: rows read whose text or image was read before.
        near_duplicates: groups of two rows or more that are alike.
        near_rows: rows of those groups.
        largest_group: rows of the largest group, which may be 1.
        near_conflicts: groups with more than one label.
        conflicts: examples read with more than one label, or another than the checkpoint has.
        leaks: examples given to two splits.
        near_leaks: rows set aside for resembling one that was given to another split.
        empty: examples in which nothing can be seen.
        label_twins: labels alike but for case, spacing or Unicode form.
        class_rows: rows by class, those set aside left out.
        absent: by split that is to have rows, the classes that it has none of.
    """

    kind: Kind
    rows: Mapping[str, int]
    exact_duplicates: Found
    near_duplicates: Found
    near_rows: int
    largest_group: int
    near_conflicts: Found
    conflicts: Found
    leaks: Found
    near_leaks: int
    empty: Found
    label_twins: tuple[tuple[str, ...], ...]
    class_rows: Mapping[str, int]
    absent: Mapping[str, Sequence[str]]

    @property
    def imbalance(self) -> float:
        """Rows of the largest class for each row of the smallest."""
        return max(self.class_rows.values()) / max(min(self.class_rows.values()), 1)

    @property
    def rarest(self) -> str:
        """The class of fewest rows."""
        return min(self.class_rows, key=lambda name: self.class_rows[name])

    @property
    def commonest(self) -> str:
        """The class of most rows."""
        return max(self.class_rows, key=lambda name: self.class_rows[name])

    def to_json(self) -> dict[str, Any]:
        """As audit.json holds it; the same examples give the same values."""
        return {
            "rows": dict(self.rows),
            "exact_duplicates": self.exact_duplicates.to_json(),
            "near_duplicates": {
                **self.near_duplicates.to_json(),
                "rows": self.near_rows,
                "largest_group": self.largest_group,
            },
            "near_conflicts": self.near_conflicts.to_json(),
            "conflicting_labels": self.conflicts.to_json(),
            "leakage": {**self.leaks.to_json(), "near": self.near_leaks},
            f"empty_{self.kind.many}": self.empty.to_json(),
            "label_twins": [list(names) for names in self.label_twins],
            "class_rows": dict(self.class_rows),
            "imbalance": round(self.imbalance, 4),
            "absent_classes": {split: list(names) for split, names in self.absent.items()},
        }


def audit_tables(dataset: Dataset) -> TableAudit:
    """Look through the rows read and the examples they became: no model, and of texts seconds."""
    examples, report = dataset.examples, dataset.report
    invisible = _invisible(examples)
    read = RowsRead.of(dataset.sources, examples, {examples.ids[row] for row in invisible})
    told = _NOTHING_READ if dataset.sources is None else report
    counts = examples.counts()
    placed = {split: sum(by.values()) for split, by in counts.items()}
    near = _near_groups(examples)
    mixed = [rows for rows in near if len(set(examples.labels[rows].tolist())) > 1]
    kept = [by for split, by in counts.items() if split != QUARANTINE]
    return TableAudit(
        kind=examples.kind,
        rows=placed,
        exact_duplicates=read.exact_duplicates(),
        near_duplicates=_found(examples, near, read),
        near_rows=sum(map(len, near)),
        largest_group=max(map(len, near), default=1),
        near_conflicts=_found(examples, mixed, read),
        conflicts=read.conflicts(told),
        leaks=read.leaks(),
        near_leaks=read.near_leaks(told),
        empty=_found(examples, [[row] for row in invisible], read),
        label_twins=tuple(map(tuple, report["label_twins"])),
        class_rows={name: sum(by[name] for by in kept) for name in examples.label_names},
        absent=_absent(report, placed),
    )


def is_invisible(text: str) -> bool:
    """Whether a text has nothing to be seen: zero-width, control and white-space characters."""
    return all(unicodedata.category(character) in _INVISIBLE for character in text)


def _invisible(examples: Examples) -> list[int]:
    """Rows in which nothing can be seen, ascending."""
    if examples.kind is IMAGE:
        return blank_images(examples.images)
    return [row for row, text in enumerate(examples.texts) if is_invisible(text)]


def _near_groups(examples: Examples) -> list[list[int]]:
    """Rows of each near-duplicate group of two or more, the largest group first."""
    members: dict[str, list[int]] = {}
    for row, (group, split) in enumerate(zip(examples.groups, examples.splits, strict=True)):
        if split != QUARANTINE:
            members.setdefault(group, []).append(row)
    groups = [rows for rows in members.values() if len(rows) > 1]
    return sorted(groups, key=lambda rows: (-len(rows), rows))


def _found(examples: Examples, groups: Sequence[list[int]], read: RowsRead) -> Found:
    """All groups counted, and the first of those that may be shown; a group is of one split."""
    shown = [rows for rows in groups if examples.splits[rows[0]] in SHOWN][:LISTED]
    names = [examples.label_names[label] for label in examples.labels.tolist()]
    worst = tuple(
        Group(
            example_id=examples.ids[rows[0]],
            content=examples.contents[rows[0]],
            split=examples.splits[rows[0]],
            rows=len(rows),
            labels=dict(sorted(Counter(names[row] for row in rows).items())),
            places=read.places(examples.ids[rows[0]]),
        )
        for rows in shown
    )
    return Found(len(groups), worst)


def _absent(report: Mapping[str, Any], placed: Mapping[str, int]) -> dict[str, list[str]]:
    """Absent classes of the splits that have rows, or a share of them."""
    shares = dict(zip(SPLITS, map(float, report["shares"].split("/")), strict=True))
    return {
        split: list(names)
        for split, names in report["absent_classes"].items()
        if placed[split] or shares[split] > 0
    }
