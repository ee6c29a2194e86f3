"""The page that shows how a fine-tuning went: curves, confusion, classes, the worst errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright import metrics
from edgewright.examples.splits import QUARANTINE
from edgewright.figures import line_figure
from edgewright.finetune.audit import Audit
from edgewright.finetune.audit_report import audit_sections
from edgewright.finetune.calibration import Calibration
from edgewright.finetune.calibration_report import calibration_section
from edgewright.finetune.changes import Change, changes_sections
from edgewright.finetune.depth import DepthChoice
from edgewright.finetune.depth_report import depth_sections
from edgewright.finetune.evaluate import Answers, cross_entropy, log_probabilities
from edgewright.finetune.forgetting import Forgetting
from edgewright.finetune.forgetting_report import forgetting_section
from edgewright.finetune.recipe import Fit
from edgewright.finetune.summary import lora_words, millions
from edgewright.report import (
    Block,
    ConfusionMatrix,
    DataTable,
    Headline,
    Paragraph,
    Section,
    TextRow,
    TextRows,
    Tone,
    render_report,
)
from edgewright.shown_example import shown_example

_WORST: Final = 12
_MANY_CLASSES: Final = 30  # a larger confusion matrix is unreadable


@dataclass(frozen=True, eq=False)
class Learnt:
    """What a run has brought, before it is written."""

    fit: Fit
    validation: Answers
    test: Answers
    calibration: Calibration
    forgetting: Forgetting | None
    audit: Audit | None
    depth: DepthChoice | None


@dataclass(frozen=True)
class Story:
    """What the report tells; certify and search rows are no part of it."""

    data: Sequence[str]  # where new examples came from
    model: str  # what training started from
    summary: dict[str, Any]
    label_names: Sequence[str]
    counts: dict[str, dict[str, int]]
    notes: Sequence[str]
    learnt: Learnt
    changes: Sequence[Change]


def render(story: Story, manifest_sha256: str) -> bytes:
    """The report as HTML that cites the manifest."""
    return render_report(
        title=", ".join(Path(source).name for source in story.data) or "the same examples again",
        subtitle=f"Fine-tuning of {story.model}",
        headline=_headline(story),
        sections=[
            *changes_sections(story.changes),
            _learning(story),
            *depth_sections(story.learnt.depth),
            *_confusion(story),
            calibration_section(story.learnt.calibration, story.learnt.test),
            *forgetting_section(story.learnt.forgetting, story.summary["interpolate"]),
            *_worst_errors(story),
            *audit_sections(story.learnt.audit),
            _splits(story),
        ],
        manifest_sha256=manifest_sha256,
    )


def _headline(story: Story) -> Headline:
    summary = story.summary
    trained = summary["trainable_parameters"] / summary["parameters"]
    facts = [
        ("best epoch", f"{summary['best_epoch']} of {summary['epochs_run']} run"),
        ("frozen", f"{summary['frozen']} of {summary['blocks']} blocks"),
        ("trained", f"{trained:.0%} of {millions(summary['parameters'])} parameters"),
        *_lora_facts(summary["lora"]),
        *_tokens(summary),
        ("device", f"{summary['device']}, {summary['precision']}"),
        ("seconds", f"{summary['seconds']:.0f}"),
    ]
    if summary["test_accuracy"] is None:
        text = "No test accuracy: the test split is empty"
        return Headline(text, Tone.WARN, "Give more rows, or a test file with --test.", facts)
    low, high = summary["test_accuracy_interval"]
    return Headline(
        f"{summary['test_accuracy']:.1%} of test rows right",
        Tone.NEUTRAL,
        f"95% interval {low:.1%} to {high:.1%} over {summary['rows']['test']} rows "
        f"(Clopper-Pearson); macro-F1 {summary['macro_f1']:.3f}.",
        facts,
    )


def _tokens(summary: dict[str, Any]) -> list[tuple[str, str]]:
    if summary["max_length"] is None:
        return []
    facts = [("truncated texts", f"{summary['truncated']:.1%}")]
    if summary["unknown"]:
        facts.append(("texts mostly unknown", f"{summary['unknown']:.1%}"))
    return facts


def _lora_facts(lora: dict[str, int] | None) -> list[tuple[str, str]]:
    return [] if lora is None else [("LoRA", f"rank {lora['rank']}, {lora['blocks']} blocks")]


def _learning(story: Story) -> Section:
    epochs, lora = story.learnt.fit.epochs, story.summary["lora"]
    trained = "" if lora is None else f" LoRA {lora_words(lora)}, merged into the weights."
    losses = {"train": [(float(each.number), each.train_loss) for each in epochs]}
    measured = [(float(each.number), each.validation) for each in epochs if each.validation]
    if not measured:
        figure = line_figure(losses, x_label="epoch", y_label="loss", caption="Loss by epoch.")
        intro = f"There were no validation rows: the last epoch is kept.{trained}"
        return Section("Learning", [figure], intro)
    losses["validation"] = [(number, scores.loss) for number, scores in measured]
    quality = {
        "accuracy": [(number, scores.accuracy) for number, scores in measured],
        "macro-F1": [(number, scores.macro_f1) for number, scores in measured],
    }
    blocks: list[Block] = [
        line_figure(losses, x_label="epoch", y_label="loss, nats", caption="Loss by epoch."),
        line_figure(
            quality, x_label="epoch", y_label="share", caption="Validation by epoch.", most_y=1.0
        ),
        _epoch_table(story.learnt.fit),
    ]
    early = "Training stopped early. " if story.learnt.fit.stopped_early else ""
    return Section("Learning", blocks, f"{early}The marked epoch is the one kept.{trained}")


def _epoch_table(fit: Fit) -> DataTable:
    rows = [
        [f"{each.number}", f"{each.lr:.2e}", f"{each.train_loss:.4f}"]
        + [f"{getattr(each.validation, name):.4f}" for name in ("loss", "accuracy", "macro_f1")]
        for each in fit.epochs
    ]
    columns = ["epoch", "last rate", "train loss", "validation loss", "accuracy", "macro-F1"]
    return DataTable(columns, rows, highlight=fit.best.number - 1)


def _confusion(story: Story) -> list[Section]:
    answers = story.learnt.test
    if not len(answers.labels):
        return []
    names = story.label_names
    counts = metrics.confusion_matrix(answers.labels, answers.logits.argmax(axis=1), len(names))
    blocks: list[Block] = [_class_table(names, counts)]
    if len(names) <= _MANY_CLASSES:
        blocks.insert(0, ConfusionMatrix(names, counts, "Rows are labels, columns predictions."))
    return [Section("Test split by class", blocks)]


def _class_table(names: Sequence[str], counts: NDArray[np.int64]) -> DataTable:
    hits, labelled, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    f1 = metrics.f1_by_class(counts)
    rows = [
        [
            name,
            str(labelled[index]),
            _share(hits[index], predicted[index]),
            _share(hits[index], labelled[index]),
            "–" if np.isnan(f1[index]) else f"{f1[index]:.3f}",
        ]
        for index, name in enumerate(names)
    ]
    return DataTable(["class", "rows", "precision", "recall", "F1"], rows)


def _share(part: np.int64, whole: np.int64) -> str:
    return f"{part / whole:.3f}" if whole else "–"


def _worst_errors(story: Story) -> list[Section]:
    """The wrong answers the model was surest of: where labels are wrong, or the task is hard."""
    rows = sorted(
        (
            row
            for answers in (story.learnt.validation, story.learnt.test)
            for row in _errors(answers, story)
        ),
        key=lambda scored: -scored[0],
    )[:_WORST]
    if not rows:
        return [Section("Worst errors", [Paragraph("No validation or test row is wrong.")])]
    caption = "Wrong rows of validation and test with the largest loss."
    intro = "Look here first: some of these are wrong labels rather than wrong answers."
    return [Section("Worst errors", [TextRows([row for _, row in rows], caption)], intro)]


def _errors(answers: Answers, story: Story) -> list[tuple[float, TextRow]]:
    if not len(answers.labels):
        return []
    losses = cross_entropy(answers.labels, answers.logits)
    predicted = answers.logits.argmax(axis=1)
    named = [story.label_names[index] for index in predicted.tolist()]
    scores = np.exp(log_probabilities(answers.logits).max(axis=1))
    return [
        (
            float(losses[row]),
            shown_example(
                answers.contents[row],
                [
                    ("label", story.label_names[int(answers.labels[row])]),
                    ("predicted", f"{named[row]} ({scores[row]:.2f})"),
                    ("split", answers.split),
                ],
            ),
        )
        for row in np.flatnonzero(predicted != answers.labels).tolist()
    ]


def _splits(story: Story) -> Section:
    totals = {split: sum(by_class.values()) for split, by_class in story.counts.items()}
    rows = [
        [split, f"{totals[split]}", *(f"{by_class[name]}" for name in story.label_names)]
        for split, by_class in story.counts.items()
        if split != QUARANTINE or totals[split]
    ]
    blocks: list[Block] = [DataTable(["split", "rows", *story.label_names], rows)]
    blocks += [Paragraph(note) for note in story.notes]
    return Section("Splits", blocks)
