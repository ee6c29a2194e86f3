"""What the command prints of a run, for the person who started it."""

from __future__ import annotations

from collections.abc import Iterator

from edgewright.bundle import Verdict
from edgewright.optimize.config import SPEED
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.optimize.report.mixed import mixed_line
from edgewright.optimize.words import points, verdict_words


def summary_lines(outcome: Outcome) -> Iterator[str]:
    """The verdict, the table of candidates, and where the report lies."""
    yield from _verdict(outcome)
    yield ""
    yield from _table(outcome)
    yield ""
    yield from (mixed_line(each) for each in outcome.mixed)
    folder = outcome.config.output if outcome.shipped else outcome.config.rejected
    yield f"{'bundle' if outcome.shipped else 'rejection'}  {folder}"
    yield f"report  {folder / 'report.html'}"


def _verdict(outcome: Outcome) -> Iterator[str]:
    foremost = outcome.foremost
    if foremost is None or foremost.certificate is None:
        wanted = "faster" if outcome.config.prefer == SPEED else "smaller and not slower"
        yield f"nothing ships: no candidate is {wanted} than fp32 on ONNX Runtime"
        return
    given, contender = foremost.certificate, foremost.contender
    fate = "ships" if outcome.shipped else "does not ship"
    yield f"{given.verdict}  {foremost.name} {fate}"
    if given.verdict is Verdict.REUSED:
        yield verdict_words(given)
    else:
        yield (
            f"{given.at_most} ({points(given.budget)} allowed), shown on {given.n} rows with "
            f"error rate {given.error_rate:g}"
        )
    yield (
        f"{contender.speedup:.2f} times as fast as fp32 "
        f"({contender.speedup_low:.2f} to {contender.speedup_high:.2f}), "
        f"at {outcome.size_ratio(foremost):.2f} of its size"
    )


def _table(outcome: Outcome) -> Iterator[str]:
    header = ("candidate", "search", "ms", "speed-up", "MB", "verdict")
    rows = [header, *(_row(outcome, each) for each in outcome.standings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, 5) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _row(outcome: Outcome, standing: Standing) -> tuple[str, str, str, str, str, str]:
    contender = standing.contender
    return (
        standing.name,
        f"{outcome.search_accuracy(standing):.4f}",
        f"{standing.workload_ms:.2f}",
        f"{contender.speedup:.2f}",
        f"{contender.size_bytes / 1e6:.1f}",
        outcome.verdict(standing) + (" *" if standing.name == outcome.chosen else ""),
    )
