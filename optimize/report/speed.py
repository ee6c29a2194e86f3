"""Where the speed comes from: the runtime, exact graph work, bf16, int8."""

from __future__ import annotations

from typing import Final

from edgewright.optimize.gain_split import GainStep, gain_steps
from edgewright.optimize.graph_work import PassRecord
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.optimize.words import times
from edgewright.report import Block, DataTable, Paragraph, Section

_KINDS_SHOWN: Final = 4


def speed_section(outcome: Outcome, shown: Standing) -> Section:
    """The ratio of ``shown`` split into its factors, and what each pass of graph work did."""
    steps = gain_steps(outcome, shown)
    blocks: list[Block] = [_split(steps, shown)] if steps else []
    work = outcome.graph_work
    if work is None or not work.passes:
        blocks.append(Paragraph("No pass of graph work was tried."))
        return Section("Where the speed comes from", blocks)
    if not work.applied:
        blocks.append(Paragraph("Graph work found nothing to leave out: the file is as exported."))
    columns = ["pass", "nodes", "fewer, by operator", "largest difference", "times as fast so far"]
    blocks.append(
        DataTable(
            columns,
            [_pass(outcome, each) for each in work.passes],
            "Exact graph work, in its order: nodes before and after, the largest difference of a "
            "logit from the exported file, and how many times as fast fp32 on ONNX Runtime is with "
            "all passes up to this one (95% interval of one process; the table of candidates has "
            "that of several).",
            wraps=[2],
        )
    )
    return Section("Where the speed comes from", blocks)


def _split(steps: list[GainStep], shown: Standing) -> DataTable:
    contender = shown.contender
    total = times(contender.speedup, (contender.speedup_low, contender.speedup_high))
    rows = [[each.source, each.candidate, times(each.factor, each.interval)] for each in steps]
    return DataTable(
        ["from", "measured on", "times as fast"],
        [*rows, ["all together", shown.name, total]],
        "Each candidate against the one before it, the first against fp32 on ONNX Runtime; the "
        "factors multiply to the whole, up to rounding.",
        highlight=len(rows),
    )


def _pass(outcome: Outcome, each: PassRecord) -> list[str]:
    before, after = sum(each.before.values()), sum(each.after.values())
    if not each.applied:
        return [each.name, f"{before}", f"left out: {each.left_out}", "–", "–"]
    timing = outcome.gains.get(each.name)
    measured = "not measured"
    if timing is not None:
        measured = times(timing.ratio, (timing.ratio_low, timing.ratio_high))
    return [
        each.name,
        f"{before} → {after}",
        _fewer(each.removed),
        f"{each.max_difference:.1e}",
        measured,
    ]


def _fewer(removed: dict[str, int]) -> str:
    """As "24 Transpose, 12 Shape, −3 Mul"; what was added is negative."""
    largest = sorted(removed.items(), key=lambda item: -abs(item[1]))
    told = [f"{count} {kind}".replace("-", "−") for kind, count in largest[:_KINDS_SHOWN]]
    hidden = len(largest) - _KINDS_SHOWN
    more = [f"and of {hidden} more {'kind' if hidden == 1 else 'kinds'}"] if hidden > 0 else []
    return ", ".join([*told, *more]) or "none: other attributes or weights"
