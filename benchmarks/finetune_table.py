"""The fine-tuning benchmark's record, for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import machine

Record = Mapping[str, Any]


def show(record: Record, console: Console) -> None:
    """Print the table and what is under it."""
    console.print(table(record))
    for line in remarks(record):
        console.print(line, highlight=False)


def table(record: Record) -> Table:
    """One row a contender; ratios are its time over ours."""
    rows, given = record["rows"], record["settings"]
    seeds = len({run["seed"] for run in record["runs"]})
    shown = Table(
        title=f"{rows['train']} rows, {given['epochs']} epochs, {given['precision']}, "
        f"{given['threads']} threads, {seeds} seeds, {given['frozen']} of 6 blocks frozen"
    )
    shown.add_column("")
    for column in ("training s", "ratio", "command s", "ratio", "accuracy", "ours minus it"):
        shown.add_column(column, justify="right")
    for name, title in record["titles"].items():
        seconds, ratios = record["seconds"][name], record["ratios"].get(name)
        shown.add_row(
            title,
            f"{seconds['train']:.1f}",
            spread(ratios and ratios["train"]),
            f"{seconds['command']:.1f}",
            spread(ratios and ratios["command"]),
            share(record["accuracy"][name]),
            paired(record["differences"].get(name)),
        )
    return shown


def remarks(record: Record) -> list[str]:
    """What the columns mean, and where they come from."""
    return [
        "training: from loaded model and tokenised rows to final weights, validation every epoch "
        "and, for edgewright, the fill of a cold cache included",
        "command: the whole process; edgewright's also audits the rows, probes what was forgotten, "
        "calibrates and writes the report",
        "ratio: the median over seeds (least to most); accuracy on "
        f"{record['rows']['heldout']} held-out rows with its 95% interval; the difference with its "
        "standard error",
        machine(record),
    ]


def spread(ratio: Record | None) -> str:
    """A ratio with the least and the most of its seeds."""
    if ratio is None:
        return "1"
    return f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"


def share(accuracy: Record) -> str:
    """An accuracy with its interval."""
    low, high = accuracy["interval"]
    return f"{accuracy['mean']:.1%} ({low:.1%} to {high:.1%})"


def paired(difference: Record | None) -> str:
    """A difference in points and its standard error."""
    if difference is None:
        return ""
    points, error = 100 * difference["mean"], 100 * difference["standard_error"]
    return f"{points:+.2f} ± {error:.2f} points"
