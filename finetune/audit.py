"""The data audit before training: what may be wrong with the examples, never put right by itself.

The tables' half (``table_audit``) needs no model. This is the other: lengths of texts, and with
``--audit full`` one pass of the pre-trained encoder over train, validation and test for outliers
and likely label errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.examples import Examples, Image
from edgewright.finetune.batches import Indices
from edgewright.finetune.findings import SHOWN, content_json
from edgewright.finetune.label_errors import LabelErrors, find_label_errors
from edgewright.finetune.linear_probe import Features
from edgewright.finetune.outliers import NEIGHBOUR, Outliers, find_outliers
from edgewright.finetune.strict import violations
from edgewright.finetune.table_audit import TableAudit
from edgewright.finetune.task import ExampleRows

# An encoder pass over more would cost minutes, and its features memory; a sample tells as much
# about how many labels are wrong, if not which.
MAX_ROWS: Final = 10_000
_ERRORS_LISTED: Final = 50
_NEARLY: Final = 0.9  # of the limit


@dataclass(frozen=True, eq=False)
class Lengths:
    """By split: texts cut at ``limit`` tokens, and those not cut but above nine tenths of it."""

    limit: int
    truncated: Mapping[str, int]
    nearly: Mapping[str, int]

    @classmethod
    def of(cls, rows: Mapping[str, ExampleRows], limit: int) -> Lengths:
        """Count in the rows of each split."""
        above = {name: int((each.lengths >= _NEARLY * limit).sum()) for name, each in rows.items()}
        cut_off = {name: each.truncated for name, each in rows.items()}
        nearly = {name: above[name] - cut_off[name] for name in rows}
        return cls(limit, cut_off, nearly)

    def to_json(self) -> dict[str, Any]:
        """As audit.json holds it."""
        return {
            "limit": self.limit,
            "truncated": dict(self.truncated),
            "nearly": dict(self.nearly),
        }


@dataclass(frozen=True, eq=False)
class AuditedRows:
    """The rows that the encoder's features are asked of: train, validation and test, or a sample.

    ``chosen`` holds places in the rows of the three splits laid end to end, ascending.
    """

    ids: Sequence[str]
    contents: Sequence[str | Image]
    labels: NDArray[np.int64]
    splits: Sequence[str]
    chosen: Indices
    of: int  # rows of the three splits

    @classmethod
    def draw(cls, examples: Examples, *, seed: int, most: int = MAX_ROWS) -> AuditedRows:
        """All rows, or ``most`` of them drawn by ``seed``."""
        parts = [examples.split(name) for name in SHOWN]
        labels = np.concatenate([part.labels for part in parts])
        chosen = np.arange(len(labels))
        if len(labels) > most:
            chosen = np.sort(np.random.default_rng([seed, most]).permutation(len(labels))[:most])
        ids = [key for part in parts for key in part.ids]
        contents = [each for part in parts for each in part.contents]
        splits = [name for part in parts for name in part.splits]
        return cls(
            [ids[row] for row in chosen],
            [contents[row] for row in chosen],
            labels[chosen],
            [splits[row] for row in chosen],
            chosen,
            len(labels),
        )

    def by_split(self, sizes: Mapping[str, int]) -> dict[str, Indices]:
        """``chosen`` as places in the rows of each split, whose ``sizes`` are given."""
        ends = np.cumsum([0, *(sizes[name] for name in SHOWN)])
        return {
            name: self.chosen[(self.chosen >= start) & (self.chosen < end)] - start
            for name, start, end in zip(SHOWN, ends, ends[1:], strict=False)
        }


@dataclass(frozen=True, eq=False)
class FeatureAudit:
    """What the encoder's features tell about ``rows``."""

    rows: AuditedRows
    outliers: Outliers
    label_errors: LabelErrors

    @classmethod
    def of(cls, rows: AuditedRows, features: Features, classes: int, *, seed: int) -> FeatureAudit:
        """Judge each row by its features, float32 of shape (rows, dims)."""
        errors = find_label_errors(features, rows.labels, classes, seed=seed)
        return cls(rows, find_outliers(features), errors)

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """As audit.json holds it; probabilities and distances to four digits."""
        errors, outliers = self.label_errors, self.outliers
        return {
            "rows": {"judged": len(self.rows.ids), "of": self.rows.of},
            "label_errors": {
                "count": len(errors.ranked),
                "judged": errors.judged,
                "agreement": None if errors.agreement is None else round(errors.agreement, 4),
                "is_skilled": errors.is_skilled,
                "classes_too_small": [names[label] for label in errors.small_classes],
                "method": errors.method(),
                "ranked": [
                    {
                        **self._row(each.row),
                        "label": names[each.label],
                        "suggested": names[each.suggested],
                        "label_probability": round(each.label_probability, 4),
                        "suggested_probability": round(each.suggested_probability, 4),
                    }
                    for each in errors.ranked[:_ERRORS_LISTED]
                ],
            },
            "outliers": {
                "count": outliers.beyond,
                "judged": outliers.judged,
                "limit": None if outliers.limit is None else round(outliers.limit, 4),
                "method": f"1 - cosine to neighbour {NEIGHBOUR}; counted above Q3 + 1.5 IQR",
                "farthest": [
                    {
                        **self._row(row),
                        "label": names[int(self.rows.labels[row])],
                        "distance": round(distance, 4),
                    }
                    for row, distance in zip(outliers.rows, outliers.distances, strict=True)
                ],
            },
        }

    def _row(self, row: int) -> dict[str, Any]:
        rows = self.rows
        content = content_json(rows.contents[row])
        return {"id": rows.ids[row], **content, "split": rows.splits[row]}


@dataclass(frozen=True, eq=False)
class Audit:
    """Everything the audit found.

    ``lengths`` is None for images; ``features`` where no encoder was asked.
    """

    mode: str  # "full" or "fast"
    label_names: Sequence[str]
    tables: TableAudit
    lengths: Lengths | None
    features: FeatureAudit | None = None

    def to_json(self) -> dict[str, Any]:
        """audit.json: the same examples, options and seed give the same record."""
        return {
            "mode": self.mode,
            **self.tables.to_json(),
            "lengths": None if self.lengths is None else self.lengths.to_json(),
            "features": None if self.features is None else self.features.to_json(self.label_names),
            "strict": violations(self.tables),
        }

    def summary(self) -> dict[str, Any]:
        """The counts, as ``--json`` prints them; None for what was not looked for."""
        tables, features, lengths = self.tables, self.features, self.lengths
        return {
            "mode": self.mode,
            "exact_duplicates": tables.exact_duplicates.count,
            "near_duplicate_groups": tables.near_duplicates.count,
            "near_conflicts": tables.near_conflicts.count,
            "conflicting_labels": tables.conflicts.count,
            "leakage": tables.leaks.count + tables.near_leaks,
            f"empty_{tables.kind.many}": tables.empty.count,
            "label_twins": len(tables.label_twins),
            "imbalance": round(tables.imbalance, 4),
            "truncated": lengths and sum(lengths.truncated.values()),
            "nearly_truncated": lengths and sum(lengths.nearly.values()),
            "label_errors": features and len(features.label_errors.ranked),
            "outliers": features and features.outliers.beyond,
            "strict": sorted(violations(tables)),
        }

    @property
    def notes(self) -> list[str]:
        """What is worth a look, in words."""
        found, many = self.summary(), self.tables.kind.many
        counted = {
            "label_errors": "labels that are likely wrong, the likeliest first in the report",
            "outliers": f"{many} far from all others",
            "near_conflicts": "groups of near-duplicates with more than one label",
            "leakage": f"{many} given, or nearly, to more than one split",
            f"empty_{many}": f"{many} in which nothing can be seen",
        }
        notes = [f"{words}: {found[name]}" for name, words in counted.items() if found[name]]
        if found["strict"]:
            notes.append(f"--strict would refuse: {', '.join(found['strict'])}")
        return notes
