"""The examples of a run: tables read, new ones added to those of an earlier checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgewright.checkpoint import Checkpoint
from edgewright.examples import (
    SPLITS,
    Columns,
    Examples,
    Sources,
    SplitShares,
    Table,
    build_examples,
    read_table,
    without_broken_images,
)
from edgewright.finetune.config import DEFAULT_SPLITS, FinetuneConfig
from edgewright.finetune.findings import has_dominant_group
from edgewright.manifest import canonical_json, sha256_bytes


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples in their splits, and the report on how they came there."""

    examples: Examples
    report: Mapping[str, Any]  # SplitReport.to_json()
    added: Mapping[str, int] = field(default_factory=dict)  # split -> rows beyond the checkpoint's
    sources: Sources | None = None  # the tables that this run has read

    @property
    def sha256(self) -> str:
        """Identifies the texts or images (by id) and their labels, in order."""
        names = self.examples.label_names
        labels = [names[label] for label in self.examples.labels.tolist()]
        return sha256_bytes(canonical_json([self.examples.ids, labels]))

    @property
    def notes(self) -> list[str]:
        """What was dropped, set aside or merged, in words."""
        report, kind = self.report, self.examples.kind
        counted = {
            "exact_duplicates": f"rows that repeat a known {kind.name}, which is kept once",
            "contradicting": f"{kind.many} known under another label, which stands",
            "conflicting": f"{kind.many} with more than one label, set aside",
            "bridging": f"{kind.many} much like {kind.many} of two splits, set aside",
            "leaked": f"{kind.many} much like one given for validation or test, set aside",
            "near_duplicate_pairs": "pairs of near-duplicates, each kept in one split",
        }
        notes = [f"{words}: {report[name]}" for name, words in counted.items() if report[name]]
        if self.added:
            places = ", ".join(f"{rows} {split}" for split, rows in self.added.items() if rows)
            total = sum(self.added.values())
            told = f" ({places})" if places else ""
            notes.append(f"rows added to those of the checkpoint: {total}{told}")
        return [*report["notes"], *notes]

    @property
    def warnings(self) -> list[str]:
        """What can spoil the figures, in words."""
        twins = [
            f"labels {', '.join(names)} differ in case, spacing or Unicode form alone; "
            "are they one class?"
            for names in self.report["label_twins"]
        ]
        absent = [
            f"the {split} split has no row of {', '.join(names)}"
            for split, names in self.report["absent_classes"].items()
        ]
        return twins + absent + self._dominant_group()

    def _dominant_group(self) -> list[str]:
        largest, rows = self.report["largest_group"], len(self.examples)
        if not has_dominant_group(largest, rows):
            return []
        return [
            f"one group of near-duplicates holds {largest} of {rows} rows, and all of it is in one "
            "split: the figures of that split speak of little else"
        ]


def read_dataset(config: FinetuneConfig, checkpoint: Checkpoint | None) -> Dataset:
    """Read the files that ``config`` names; rows of ``checkpoint`` stay where they are.

    Raises:
        DataError: names the file, row and column at fault.
    """
    if checkpoint is None:
        shares, seed = SplitShares.parse(config.splits or DEFAULT_SPLITS), config.seed
        sources = _sources(config)
        examples, report = build_examples(sources, shares=shares, seed=seed)
        return Dataset(examples, report.to_json(), sources=sources)
    recorded = checkpoint.artifact.manifest["splits"]
    if not config.sources:
        return Dataset(checkpoint.examples(), recorded)
    # The recorded shares and seed, so that a row goes where it would have gone at the start.
    previous = checkpoint.examples()
    sources = _sources(config)
    examples, report = build_examples(
        sources,
        shares=SplitShares.parse(recorded["shares"]),
        seed=recorded["seed"],
        previous=previous,
        allow_new_labels=config.new_labels,
    )
    added = {name: len(examples.split(name)) - len(previous.split(name)) for name in SPLITS}
    return Dataset(examples, report.to_json(), added, sources)


def _sources(config: FinetuneConfig) -> Sources:
    columns = Columns(
        config.text_column, config.label_column, config.split_column, config.image_column
    )
    # Only DATA is split by a column; the other files go whole to one split, or by hash.
    unsplit = replace(columns, split=None)

    def read(source: str | None) -> Table | None:
        return None if source is None else read_table(source, unsplit)

    return Sources(
        main=None
        if config.data is None
        else read_table(config.data, columns, revision=config.data_revision),
        validation=read(config.validation),
        test=read(config.test),
        # Gathered from callers: one that is broken must not hold up the others.
        added=tuple(without_broken_images(read_table(source, unsplit)) for source in config.add),
    )
