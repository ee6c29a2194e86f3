"""The optimising benchmark's record, for a person."""

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
    """One row a file; ratios are to the faster of the stock files at that shape."""
    given = record["settings"]
    shown = Table(title=f"{record['subject']}; {given['threads']} thread(s) a session")
    shown.add_column("")
    columns = ["size", *record["races"], "right", "lost, won", "loses at most", "command s"]
    for column in columns:
        shown.add_column(column, justify="right")
    stock_bytes = record["scores"][record["stock"][0]]["size_bytes"]
    for name, title in record["titles"].items():
        score = record["scores"][name]
        shown.add_row(
            title + ("" if score["batch_invariant"] or score["row_by_row"] else " *"),
            f"{score['size_bytes'] / stock_bytes:.2f}",
            *(ratio(race, name) for race in record["races"].values()),
            f"{score['accuracy']:.1%}",
            f"{score['lost']}, {score['won']}",
            f"{100 * score['loss_upper_bound']:.2f} points",
            f"{record['command_s'][name]:.0f}" if name in record["command_s"] else "",
        )
    return shown


def ratio(race: Record, name: str) -> str:
    """How many times as fast as the faster stock file, with the interval."""
    file = race["files"].get(name)
    if file is None:
        return "failed"
    low, high = file["speedup_interval"]
    return (
        "1" if name == race["fastest_stock"] else f"{file['speedup']:.2f} ({low:.2f} to {high:.2f})"
    )


def remarks(record: Record) -> list[str]:
    """What the columns mean, what else was found, and where it comes from."""
    n = next(iter(record["scores"].values()))["n"]
    lines = [
        "a shape is rows x tokens or height; under it, times as fast as the faster stock fp32 file "
        "(95% interval over processes)",
        f"right: of {n} held-out rows, of which the PyTorch model has {record['reference_right']}; "
        "lost, won: against that model; loses at most: exact, one-sided 95%",
        "* a row's answer depends on the rows beside it; timed and scored in batches all the same, "
        "as its tool leaves it",
    ]
    lines += [stock_line(shape, race, record["stock"]) for shape, race in record["races"].items()]
    for name, by_shape in record["gains"].items():
        lines.append(
            f"{record['titles'][name]}: {verdict(record['notes'][name])}; {split(by_shape)}"
        )
    lines += [f"without {name}: {reason}" for name, reason in record["left_out"].items()]
    return [*lines, machine(record)]


def stock_line(shape: str, race: Record, stock: list[str]) -> str:
    """How the two stock files compare."""
    times = ", ".join(
        f"{name} {race['files'][name]['p50_ms'][shape]:.1f} ms"
        for name in stock
        if name in race["files"]
    )
    return f"{shape}: {times}"


def verdict(notes: Record) -> str:
    """What the certificate says of our choice."""
    return (
        f"{notes['variant']} {notes['verdict']}, loses at most "
        f"{100 * notes['loss_upper_bound']:.2f} points (n = {notes['certify_n']})"
    )


def split(by_shape: Mapping[str, Mapping[str, float]]) -> str:
    """The factors of our gain, shape by shape."""
    return "; ".join(
        f"{shape}: " + " x ".join(f"{step} {factor:.2f}" for step, factor in steps.items())
        for shape, steps in by_shape.items()
    )
