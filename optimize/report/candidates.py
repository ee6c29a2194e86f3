"""Every file on every runtime: accuracy against latency, sizes, verdicts, and why not."""

from __future__ import annotations

from edgewright.bundle import Against, Verdict
from edgewright.figures import Point, interval_scatter_figure
from edgewright.kinds import TEXT
from edgewright.metrics import accuracy, accuracy_interval
from edgewright.optimize.doubts import timing_doubts
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.optimize.reasons import why_not
from edgewright.optimize.report.circumstances import threads_words
from edgewright.optimize.report.verdict import TONES
from edgewright.optimize.words import amount, share_name, times
from edgewright.report import Block, DataTable, Figure, Paragraph, Section, Tone


def candidates_section(outcome: Outcome) -> Section:
    """The plot with its frontier, and tables of accuracy, speed, and what was not considered."""
    doubts = [Paragraph(f"{doubt}.") for doubt in timing_doubts(outcome)]
    blocks: list[Block] = [*doubts, _plot(outcome), _fates(outcome), _figures(outcome)]
    if outcome.skipped:
        caption = "Combinations that were not made or not measured."
        blocks.append(DataTable(["not considered", "because"], outcome.skipped, caption, wraps=[1]))
    return Section("Candidates", blocks, _intro(outcome))


def _intro(outcome: Outcome) -> str:
    judged = "which have no labels, so every answer other than the model's counts as lost"
    if outcome.search_against is Against.LABELS:
        right = accuracy(outcome.search.labels, outcome.reference)
        judged = f"of which the model itself gets {_share(right)} right"
    return (
        f"Every file on every runtime was ranked on the search split ({len(outcome.search)} rows, "
        f"{judged}) and timed in turns against fp32 on ONNX Runtime. At most three were then "
        "fixed, in order, before a certify row was read."
    )


def _plot(outcome: Outcome) -> Figure:
    points = {each.name: _point(outcome, each) for each in outcome.standings}
    frontier = [points[each.name] for each in outcome.frontier]
    share = share_name(outcome.search_against)
    level = None
    if outcome.search_against is Against.LABELS:
        level = (accuracy(outcome.search.labels, outcome.reference), "the model itself")
    return interval_scatter_figure(
        list(points.values()),
        x_label=f"latency at the workload, ms ({threads_words(outcome)})",
        y_label=f"{share} on search",
        caption=(
            f"{share.capitalize()} against latency with 95% intervals: up and to the left is "
            f"better. {_frontier_words(outcome)}"
        ),
        y_line=level,
        joined=(frontier, "frontier") if len(frontier) > 1 else None,
    )


def _frontier_words(outcome: Outcome) -> str:
    if len(outcome.frontier) == 1:
        return f"No other is faster or better than {outcome.frontier[0].name}."
    return "The line joins those that no other beats in both."


def _point(outcome: Outcome, standing: Standing) -> Point:
    contender = standing.contender
    baseline_ms = outcome.baseline.workload_ms
    low, high = _search_interval(outcome, standing)
    verdict = standing.certificate.verdict if standing.certificate else None
    return Point(
        label=standing.name,
        x=baseline_ms / contender.speedup,
        x_low=baseline_ms / contender.speedup_high,
        x_high=baseline_ms / contender.speedup_low,
        y=outcome.search_accuracy(standing),
        y_low=low,
        y_high=high,
        tone=TONES[verdict] if verdict else Tone.NEUTRAL,
    )


def _fates(outcome: Outcome) -> DataTable:
    share = share_name(outcome.search_against)
    return DataTable(
        ["candidate", "times as fast", f"search {share}", "verdict", "why it is not served"],
        [
            [
                each.name,
                times(each.contender.speedup, _speed_interval(each)),
                _searched(outcome, each),
                outcome.verdict(each),
                why_not(outcome, each) or "it is served",
            ]
            for each in outcome.standings
        ],
        f"Speed against fp32 on ONNX Runtime at the workload, with its interval; {share} on search "
        "with its 95% interval (Clopper-Pearson).",
        _chosen_row(outcome),
        wraps=[4],
    )


def _figures(outcome: Outcome) -> DataTable:
    shapes = list(outcome.baseline.p50_ms)
    unit = "tokens" if outcome.search.kind is TEXT else "pixels of height"
    rows = [
        [
            each.name,
            *[f"{each.p50_ms[shape]:.2f}" for shape in shapes],
            f"{each.contender.size_bytes / 1e6:.1f}",
            f"{outcome.size_ratio(each):.2f}",
            *_certified(each),
            "one row at a time" if each.row_by_row else "in batches",
        ]
        for each in outcome.standings
    ]
    counted = "certify: lost / won" if outcome.against is Against.LABELS else "certify: differ"
    return DataTable(
        ["candidate", *[f"ms, {shape}" for shape in shapes], "MB", "size, of fp32"]
        + [counted, "at most", "served"],
        rows,
        f"Median latency by shape, rows x {unit}; size of the file; what the certify split showed.",
        _chosen_row(outcome),
    )


def _certified(standing: Standing) -> list[str]:
    given = standing.certificate
    if given is None or given.verdict is Verdict.REUSED:
        return ["–", "–"]
    differ = given.against is Against.REFERENCE
    counts = f"{given.lost}" if differ else f"{given.lost} / {given.won}"
    return [f"{counts} of {given.n}", amount(given.loss_upper_bound, given.against)]


def _searched(outcome: Outcome, standing: Standing) -> str:
    low, high = _search_interval(outcome, standing)
    return f"{_share(outcome.search_accuracy(standing))} ({_share(low)}–{_share(high)})"


def _speed_interval(standing: Standing) -> tuple[float, float]:
    return standing.contender.speedup_low, standing.contender.speedup_high


def _chosen_row(outcome: Outcome) -> int | None:
    if outcome.chosen is None:
        return None
    return [each.name for each in outcome.standings].index(outcome.chosen)


def _search_interval(outcome: Outcome, standing: Standing) -> tuple[float, float]:
    right = int((standing.predicted == outcome.search.labels).sum())
    return accuracy_interval(right, len(outcome.search))


def _share(value: float) -> str:
    return f"{value:.4f}"
