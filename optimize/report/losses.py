"""Where the foremost candidate loses: by class and by length, on the search split."""

from __future__ import annotations

from typing import Final

from edgewright.bundle import Against
from edgewright.metrics import confusion_matrix, macro_f1, macro_f1_loss_interval
from edgewright.optimize.losses import Loss, loss_by_class, loss_by_length
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.optimize.words import points
from edgewright.report import Block, ConfusionMatrix, DataTable, Paragraph, Section

_MANY_CLASSES: Final = 30  # a larger confusion matrix is unreadable


def losses_section(outcome: Outcome, shown: Standing) -> Section:
    """Rows lost and won by class and by length, the confusion matrix and macro-F1."""
    blocks: list[Block] = [_by_class(outcome, shown)]
    lengths = loss_by_length(outcome, shown)
    if lengths:
        blocks.append(_table(outcome, "length", lengths, "Thirds of the search texts by length."))
    if len(outcome.search.label_names) <= _MANY_CLASSES:
        blocks.append(_confusion(outcome, shown))
    if outcome.search_against is Against.LABELS:
        blocks.append(Paragraph(_macro_f1(outcome, shown)))
    intro = (
        f"{shown.name} on the {len(outcome.search)} rows of the search split. This describes; the "
        "verdict rests on the exact bound alone."
    )
    return Section("Where it loses", blocks, intro)


def _by_class(outcome: Outcome, shown: Standing) -> DataTable:
    losses = loss_by_class(outcome, shown)
    of = "class" if outcome.search_against is Against.LABELS else "the model's answer"
    if len(losses) <= _MANY_CLASSES:
        return _table(outcome, of, losses, f"Search rows by {of}.")
    worst = sorted(losses, key=lambda each: (-(each.lost - each.won), -each.lost))[:_MANY_CLASSES]
    caption = f"Search rows by {of}, the {_MANY_CLASSES} of {len(losses)} that lose most."
    return _table(outcome, of, worst, caption)


def _table(outcome: Outcome, group: str, losses: list[Loss], caption: str) -> DataTable:
    if outcome.search_against is Against.REFERENCE:
        rows = [[each.group, str(each.n), str(each.lost), _lost(each)] for each in losses]
        return DataTable([group, "rows", "answered otherwise", "share, %"], rows, caption)
    columns = [group, "rows", "model right", "candidate right", "lost", "won", "loss, points"]
    rows = [
        [each.group, *map(str, (each.n, each.model_right, each.right, each.lost, each.won))]
        + [_lost(each)]
        for each in losses
    ]
    return DataTable(columns, rows, caption)


def _lost(each: Loss) -> str:
    return points(each.share) if each.n else "–"


def _confusion(outcome: Outcome, shown: Standing) -> ConfusionMatrix:
    names = outcome.search.label_names
    counts = confusion_matrix(outcome.search.labels, shown.predicted, len(names))
    if outcome.search_against is Against.REFERENCE:
        caption = f"Rows are the model's answers, columns those of {shown.name}."
        return ConfusionMatrix(names, counts, caption, rows="model")
    return ConfusionMatrix(names, counts, "Rows are labels, columns predictions.")


def _macro_f1(outcome: Outcome, shown: Standing) -> str:
    labels, classes = outcome.search.labels, len(outcome.search.label_names)
    low, high = macro_f1_loss_interval(
        labels, outcome.reference, shown.predicted, classes, seed=outcome.config.seed
    )
    return (
        f"Macro-F1: {macro_f1(labels, outcome.reference, classes):.4f} the model, "
        f"{macro_f1(labels, shown.predicted, classes):.4f} {shown.name}; the loss lies between "
        f"{low:+.4f} and {high:+.4f} (95%, paired bootstrap)."
    )
