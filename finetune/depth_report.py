"""The report's table of the depths that ``--freeze auto`` tried."""

from __future__ import annotations

from edgewright.finetune.depth import FOLDS, Candidate, DepthChoice
from edgewright.report import DataTable, Section


def depth_sections(choice: DepthChoice | None) -> list[Section]:
    """One section, or none where the depth was given."""
    if choice is None:
        return []
    columns = ["frozen", "linear probe", "first try", "second try", "behind the best"]
    rows = [_row(each, choice.of) for each in choice.candidates]
    chosen = [each.blocks for each in choice.candidates].index(choice.blocks)
    judged = f"{FOLDS} folds of few rows" if choice.folds > 1 else "the validation split"
    intro = (
        f"Each depth was trained for one epoch on a few rows and judged on {judged}; the better "
        "ones again on more. The marked one is the deepest within one paired standard error of the "
        "best. The probe is a linear classifier on the mean of what the frozen blocks answer."
    )
    return [Section("Depth", [DataTable(columns, rows, highlight=chosen)], intro)]


def _row(candidate: Candidate, of: int) -> list[str]:
    tries = [
        f"accuracy {each.accuracy:.4f}, loss {each.loss:.4f} ({each.rows} rows)"
        for each in candidate.tries
    ]
    behind = "–"
    if candidate.behind is not None:
        behind = f"{candidate.behind:.4f} ± {candidate.standard_error:.4f}"
    return [
        f"{candidate.blocks} of {of} blocks",
        "–" if candidate.probe_accuracy is None else f"{candidate.probe_accuracy:.4f}",
        *tries,
        *["–"] * (2 - len(tries)),
        behind,
    ]
