"""The report's section on forgetting: before, after, and the mixtures of old and new weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgewright.figures import line_figure
from edgewright.finetune.forgetting import Forgetting, Mixture
from edgewright.finetune.old_set import paired_change
from edgewright.finetune.probe import Reading
from edgewright.report import Block, DataTable, Figure, Paragraph, Section

_WORDS: Final = {
    "accuracy": "accuracy on old examples",
    "masked_accuracy": "hidden tokens guessed",
    "pseudo_perplexity": "perplexity over hidden tokens",
    "neighbours_kept": "nearest neighbours kept",
    "knn_accuracy": "accuracy of a nearest-neighbour vote",
}


def forgetting_section(forgetting: Forgetting | None, share: float | None) -> list[Section]:
    """What ``forgetting`` found; ``share`` is that of --interpolate. No probe, no section."""
    if forgetting is None:
        return []
    blocks: list[Block] = [_readings(forgetting, share)]
    if forgetting.sweep:
        blocks += [*_curves(forgetting, share), _sweep_table(forgetting, share)]
    else:
        told = "--forgetting full mixes old and new weights in eleven shares and plots the trade."
        blocks.append(Paragraph(told))
    intro = f"Asked by {forgetting.probe.name}. What and why: {forgetting.probe.reason}."
    return [Section("Forgetting", blocks, intro)]


def _readings(forgetting: Forgetting, share: float | None) -> DataTable:
    columns = ["", "before training", "after training"]
    readings: list[Reading] = [forgetting.before, forgetting.after]
    if share is not None and share != 1:
        columns.append(f"as written, {share:g} new")
        readings.append(forgetting.written)
    rows = [
        [words, *(f"{reading.figures[name]:.3f}" for reading in readings)]
        for name, words in _WORDS.items()
        if name in forgetting.before.figures
    ]
    return DataTable(columns, rows, _change(forgetting))


def _change(forgetting: Forgetting) -> str:
    paired = paired_change(forgetting.before, forgetting.written)
    if paired is None:
        return ""
    lost, gained, (low, high) = paired
    return (
        f"Of {forgetting.probe.rows} rows {lost} were lost and {gained} gained: a change of "
        f"{(gained - lost) / forgetting.probe.rows:+.3f}, 95% interval {low:+.3f} to {high:+.3f} "
        "(paired, exact)."
    )


def _curves(forgetting: Forgetting, share: float | None) -> list[Figure]:
    retained = _WORDS[forgetting.probe.metric]
    kept = [(each.share, each.retained) for each in forgetting.sweep]
    right = [(each.share, each.validation_accuracy or 0.0) for each in forgetting.sweep]
    measured = all(each.validation_accuracy is not None for each in forgetting.sweep)
    series = {"validation accuracy": right, retained: kept} if measured else {retained: kept}
    caption = "Old weights at 0, new ones at 1."
    if forgetting.head_stays_new:
        caption += " The head is new in all of them: before this run there was none of its labels."
    figures = [
        line_figure(
            series,
            x_label="share of the new weights",
            y_label="share",
            caption=caption,
            whole_x=False,
        )
    ]
    if measured:
        figures.append(_trade(forgetting.sweep, retained, share))
    return figures


def _trade(sweep: Sequence[Mixture], retained: str, share: float | None) -> Figure:
    points = [(each.retained, each.validation_accuracy or 0.0) for each in sweep]
    marked = next((i for i, each in enumerate(sweep) if each.share == share), len(sweep) - 1)
    series = {"mixtures": points, "old": points[:1], "new": points[-1:]}
    if marked < len(sweep) - 1:
        series["written"] = [points[marked]]
    return line_figure(
        series,
        x_label=retained,
        y_label="validation accuracy",
        caption="The trade: what is kept against what is learnt. Up and to the right is better.",
        whole_x=False,
    )


def _sweep_table(forgetting: Forgetting, share: float | None) -> DataTable:
    rows = [
        [
            f"{each.share:g}",
            "–" if each.validation_accuracy is None else f"{each.validation_accuracy:.3f}",
            f"{each.retained:.3f}",
        ]
        for each in forgetting.sweep
    ]
    written = 1.0 if share is None else share
    marked = next((i for i, each in enumerate(forgetting.sweep) if each.share == written), None)
    columns = ["new share", "validation accuracy", _WORDS[forgetting.probe.metric]]
    caption = f"Over {forgetting.swept_rows} validation rows; the marked mixture is written."
    return DataTable(columns, rows, caption, highlight=marked)
