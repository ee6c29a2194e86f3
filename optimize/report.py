"""The report of one run: the verdict first, then what it rests on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from edgewright.backends.placement import what_runs
from edgewright.bundle import Against, Certificate, Verdict
from edgewright.figures import Point, interval_scatter_figure
from edgewright.kinds import TEXT
from edgewright.metrics import (
    accuracy,
    accuracy_interval,
    confusion_matrix,
    macro_f1,
    macro_f1_loss_interval,
)
from edgewright.optimize.config import SPEED
from edgewright.optimize.mixed_report import mixed_section
from edgewright.optimize.outcome import Outcome, Standing, points, rows_wanted
from edgewright.preprocess.thumbnails import thumbnail_uri
from edgewright.proof.bound import rows_needed
from edgewright.proof.certificate import error_rates, rows_to_pass
from edgewright.report import (
    Block,
    ConfusionMatrix,
    DataTable,
    Figure,
    Headline,
    Paragraph,
    Section,
    TextRow,
    TextRows,
    Tone,
    render_report,
)

CHANGED_SHOWN: Final = 20
_BUDGETS: Final = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05)
_MOST_ROWS: Final = 10_000  # counting further takes seconds a cell
_TONES: Final = {
    Verdict.PASS: Tone.GOOD,
    Verdict.FAIL: Tone.BAD,
    Verdict.INCONCLUSIVE: Tone.WARN,
    Verdict.REUSED: Tone.WARN,
    Verdict.UNVERIFIED: Tone.WARN,
}


def optimize_report(outcome: Outcome, manifest_sha256: str) -> bytes:
    """The page as UTF-8 HTML. Its examples are from the search split."""
    sections = [_candidates(outcome)]
    shown = outcome.foremost or outcome.baseline
    sections += [_confusion(outcome, shown), _changed(outcome, shown), _certainty(outcome)]
    sections += [mixed_section(each) for each in outcome.mixed]
    if outcome.placements:
        sections.append(_what_runs(outcome))
    sections.append(_circumstances(outcome))
    return render_report(
        title=f"Optimised: {outcome.config.output.name}",
        subtitle=(
            f"{len(outcome.search.label_names)} classes, workload {outcome.workload}, "
            f"{_threads(outcome)}, {outcome.host.cpu}"
        ),
        headline=_headline(outcome),
        sections=sections,
        manifest_sha256=manifest_sha256,
    )


def _headline(outcome: Outcome) -> Headline:
    foremost = outcome.foremost
    if foremost is None or foremost.certificate is None:
        wanted = "faster" if outcome.config.prefer == SPEED else "smaller and not slower"
        text = f"Nothing to ship: nothing is {wanted}"
        return Headline(text, Tone.BAD, str(outcome.refusal()))
    given, contender = foremost.certificate, foremost.contender
    proof = [
        ("Accuracy loss, at most", f"{points(given.loss_upper_bound)} points"),
        ("Allowed", f"{points(given.budget)} points"),
        ("Certify rows", str(given.n)),
    ]
    facts = [
        *(proof if given.verdict is not Verdict.REUSED else []),
        ("Faster than fp32", f"{contender.speedup:.2f}×"),
        ("Size, of fp32", f"{outcome.size_ratio(foremost):.2f}×"),
    ]
    if not outcome.shipped:
        text = f"{given.verdict}: nothing ships"
        return Headline(text, _TONES[given.verdict], str(outcome.refusal()), facts)
    return Headline(
        f"{given.verdict}: {foremost.name} ships", _TONES[given.verdict], _plain_words(given), facts
    )


def _plain_words(given: Certificate) -> str:
    counted = f"it lost {given.lost} that the model gets right and won {given.won}"
    if given.against is Against.REFERENCE:
        counted = f"without labels it answered {given.lost} otherwise than the model"
    if given.verdict is not Verdict.PASS:
        return (
            f"Not proven, and shipped because --allow-inconclusive was given: on {given.n} certify "
            f"rows {counted}; {rows_wanted(given)}."
        )
    return (
        f"On {given.n} rows that nothing else has seen {counted}. So it loses at most "
        f"{points(given.loss_upper_bound)} points of accuracy; a claim made this way is wrong in "
        f"at most {100 * given.error_rate:g} of 100 cases."
    )


def _candidates(outcome: Outcome) -> Section:
    highlight = None
    if outcome.chosen is not None:
        highlight = [each.name for each in outcome.standings].index(outcome.chosen)
    reference = accuracy(outcome.search.labels, outcome.reference)
    proof = DataTable(
        ["Candidate", "Search accuracy", "Certify: lost / won", "Loss, at most", "Verdict"],
        [_proof_row(outcome, each) for each in outcome.standings],
        "Search accuracy with its 95% interval (Clopper-Pearson)",
        highlight,
    )
    shapes = list(outcome.baseline.p50_ms)
    unit = "tokens" if outcome.search.kind is TEXT else "pixels of height"
    speed = DataTable(
        ["Candidate", *[f"ms, {shape}" for shape in shapes], "Speed-up", "MB", "Served"],
        [_speed_row(each, shapes) for each in outcome.standings],
        f"Median latency by shape, rows x {unit}; speed-up at the workload, with its interval",
        highlight,
    )
    intro = (
        "Every file on every runtime. All were ranked on the search split "
        f"({len(outcome.search)} rows, on which the fine-tuned model has {_share(reference)}) and "
        "timed in turns against fp32 on ONNX Runtime. At most three were then fixed, in order, "
        "before a certify row was read."
    )
    return Section("Candidates", [proof, speed, _plot(outcome)], intro)


def _proof_row(outcome: Outcome, standing: Standing) -> list[str]:
    low, high = _search_interval(outcome, standing)
    searched = f"{_share(outcome.search_accuracy(standing))} ({_share(low)}–{_share(high)})"
    given = standing.certificate
    if given is None:
        return [standing.name, searched, "–", "–", outcome.verdict(standing)]
    if given.verdict is Verdict.REUSED:
        return [standing.name, searched, "–", "–", given.verdict.value]
    counts = f"{given.lost} / {given.won} of {given.n}"
    bound = f"{points(given.loss_upper_bound)} points"
    return [standing.name, searched, counts, bound, given.verdict.value]


def _speed_row(standing: Standing, shapes: list[str]) -> list[str]:
    contender = standing.contender
    return [
        standing.name,
        *[f"{standing.p50_ms[shape]:.2f}" for shape in shapes],
        f"{contender.speedup:.2f} ({contender.speedup_low:.2f}–{contender.speedup_high:.2f})",
        f"{contender.size_bytes / 1e6:.1f}",
        "one row at a time" if standing.row_by_row else "in batches",
    ]


def _plot(outcome: Outcome) -> Figure:
    reference = accuracy(outcome.search.labels, outcome.reference)
    return interval_scatter_figure(
        [_point(outcome, standing) for standing in outcome.standings],
        x_label=f"latency at the workload, ms ({_threads(outcome)})",
        y_label="accuracy on search",
        caption="Accuracy against latency with 95% intervals: up and to the left is better",
        y_line=(reference, "fine-tuned model"),
    )


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
        tone=_TONES[verdict] if verdict else Tone.NEUTRAL,
    )


def _confusion(outcome: Outcome, shown: Standing) -> Section:
    labels, classes = outcome.search.labels, len(outcome.search.label_names)
    low, high = macro_f1_loss_interval(
        labels, outcome.reference, shown.predicted, classes, seed=outcome.config.seed
    )
    matrix = ConfusionMatrix(
        outcome.search.label_names,
        confusion_matrix(labels, shown.predicted, classes),
        f"{shown.name} on the search split: rows are labels, columns are answers",
    )
    words = (
        f"Macro-F1 on search: {macro_f1(labels, outcome.reference, classes):.4f} fine-tuned, "
        f"{macro_f1(labels, shown.predicted, classes):.4f} {shown.name}; the difference lies "
        f"between {low:+.4f} and {high:+.4f} (95%, paired bootstrap). This describes; the verdict "
        "rests on the exact bound alone."
    )
    return Section("Errors by class", [matrix, Paragraph(words)])


def _changed(outcome: Outcome, shown: Standing) -> Section:
    changed = np.flatnonzero(outcome.reference != shown.predicted)
    title = "Examples whose label changed"
    if not len(changed):
        words = f"{shown.name} answers every search row as the fine-tuned model does."
        return Section(title, [Paragraph(words)])
    caption = f"{len(changed)} of {len(outcome.search)} search rows"
    if outcome.config.no_raw_examples:
        return Section(title, [Paragraph(f"{caption}; --no-raw-examples leaves them out.")])
    rows = [_changed_row(outcome, shown, int(row)) for row in changed[:CHANGED_SHOWN]]
    if len(changed) > CHANGED_SHOWN:
        caption += f", the first {CHANGED_SHOWN} shown"
    return Section(title, [TextRows(rows, caption)])


def _changed_row(outcome: Outcome, shown: Standing, row: int) -> TextRow:
    names, search = outcome.search.label_names, outcome.search
    cells = [
        ("label", names[search.labels[row]]),
        ("fine-tuned", names[outcome.reference[row]]),
        (shown.name, names[shown.predicted[row]]),
    ]
    content = search.contents[row]
    if isinstance(content, str):
        return TextRow(content, cells)
    return TextRow(content.name, cells, thumbnail_uri(content.read(), content.name))


def _certainty(outcome: Outcome) -> Section:
    given = {
        each.name: each.certificate
        for each in outcome.tried
        if each.certificate and each.certificate.n
    }
    blocks: list[Block] = []
    if given:
        table = DataTable(
            columns=["Allowed loss", "Rows, none lost", *[f"Rows, as {name}" for name in given]],
            rows=list(_certainty_rows(outcome, list(given.values()))),
            caption="Certify rows that a PASS needs; “never” where the loss seen is not below it",
        )
        blocks.append(table)
    intro = (
        f"Certainty costs rows. The certify split has {outcome.certify_n} rows without "
        "near-duplicates. The first column is for a variant that never loses a row in the first "
        "place of the order, the others for the rates that were seen in the place they had. A "
        "larger certify share (edgewright finetune --splits) or more examples (--add) buy it."
    )
    return Section("What rows buy", blocks, intro)


def _certainty_rows(outcome: Outcome, certificates: list[Certificate]) -> Iterator[list[str]]:
    first_error_rate = error_rates(outcome.config.confidence)[0]
    for budget in sorted({*_BUDGETS, outcome.config.max_drop}):
        row = [f"{points(budget)} points", str(rows_to_pass(budget, first_error_rate))]
        yield row + [_rows_wanted(given, budget) for given in certificates]


def _rows_wanted(given: Certificate, budget: float) -> str:
    if given.lost - given.won >= budget * given.n:
        return "never"
    needed = rows_needed(given.lost, given.won, given.n, budget, given.error_rate, _MOST_ROWS)
    return f"over {_MOST_ROWS:,}" if needed is None else f"{needed:,}"


def _what_runs(outcome: Outcome) -> Section:
    """An int8 file is a wish: what each runtime made of it."""
    table = what_runs(outcome.placements)
    columns = list(table[0])
    caption = "As each runtime tells of its own graph, after fusing"
    cells = [list(row.values()) for row in table]
    return Section(
        "What runs", [DataTable([each.capitalize() for each in columns], cells, caption)]
    )


def _circumstances(outcome: Outcome) -> Section:
    host, config = outcome.host, outcome.config
    facts = [
        ("Processor", host.cpu),
        ("Instruction set", host.instruction_set),
        ("Cores", str(host.cores)),
        ("Threads of a session", str(config.threads)),
        ("Workload", outcome.workload),
        ("Confidence", f"{config.confidence:g}"),
        *[(what.capitalize(), sha256) for what, sha256 in outcome.made_from.items()],
        *[(f"Seconds, {stage}", f"{seconds:.1f}") for stage, seconds in outcome.seconds.items()],
    ]
    blocks: list[Block] = [DataTable(["Fact", "Value"], facts)]
    if outcome.skipped:
        blocks.append(DataTable(["Not considered", "Because"], outcome.skipped))
    return Section("Host and run", blocks)


def _search_interval(outcome: Outcome, standing: Standing) -> tuple[float, float]:
    right = int((standing.predicted == outcome.search.labels).sum())
    return accuracy_interval(right, len(outcome.search))


def _threads(outcome: Outcome) -> str:
    count = outcome.config.threads
    return "1 thread" if count == 1 else f"{count} threads"


def _share(value: float) -> str:
    return f"{value:.4f}"
