"""The report's section on calibration: the reliability diagram of the test split."""

from __future__ import annotations

from edgewright.figures import line_figure
from edgewright.finetune.calibration import (
    Bin,
    Calibration,
    calibration_figures,
    reliability,
)
from edgewright.finetune.evaluate import Answers
from edgewright.report import Block, DataTable, Paragraph, Section


def calibration_section(calibration: Calibration, test: Answers) -> Section:
    """What the temperature did to the scores of ``test``, which are those of the written model."""
    blocks: list[Block] = []
    if len(test.labels):
        blocks = _diagram(calibration, test)
    else:
        blocks = [Paragraph("The test split is empty: nothing to measure on.")]
    return Section("Calibration", blocks, _intro(calibration))


def _intro(calibration: Calibration) -> str:
    if calibration.skipped:
        return f"Scores are as the training left them: {calibration.skipped}."
    direction = "less" if calibration.temperature > 1 else "more"
    return (
        f"Temperature {calibration.temperature:.3f}, fitted on {calibration.rows} validation rows "
        f"and part of the written weights: scores are {direction} sure than training left them, "
        "and no row changes its class."
    )


def _diagram(calibration: Calibration, test: Answers) -> list[Block]:
    figures = calibration_figures(calibration, test)
    after = reliability(test.labels, test.logits)
    series = {"ideal": [(0.0, 0.0), (1.0, 1.0)]}
    if calibration.skipped:
        series["as trained"] = _points(after)
        told = f"Expected calibration error {figures['ece_after']:.4f}"
    else:
        before = reliability(test.labels, test.logits * calibration.temperature)
        series |= {"before": _points(before), "after": _points(after)}
        told = (
            f"Expected calibration error {figures['ece_before']:.4f} before, "
            f"{figures['ece_after']:.4f} after"
        )
    told += f", on {len(test.labels)} test rows."
    figure = line_figure(
        series,
        x_label="score of the answer given",
        y_label="share right",
        caption=f"Reliability: below the line the model is too sure. {told}",
        whole_x=False,
    )
    rows = [
        [f"{each.confidence:.3f}", f"{each.accuracy:.3f}", str(each.rows)]
        for each in reversed(after)
    ]
    table = DataTable(["mean score", "share right", "test rows"], rows, "As written, by score.")
    return [figure, table]


def _points(bins: list[Bin]) -> list[tuple[float, float]]:
    return [(each.confidence, each.accuracy) for each in bins]
