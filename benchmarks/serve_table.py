"""The serving benchmark's record, for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import machine

Record = Mapping[str, Any]


def show(record: Record, console: Console) -> None:
    """Print a table a scenario, one of starts and memory, and what is under them."""
    for name in record["scenarios"]:
        console.print(scenario_table(record, name))
    console.print(start_table(record))
    for line in remarks(record):
        console.print(line, highlight=False)


def scenario_table(record: Record, name: str) -> Table:
    """One row a server."""
    callers, words = name.split("x")
    shown = Table(title=f"{callers} caller(s), texts of {words} words")
    shown.add_column("")
    for column in ("texts a second", "p50 ms", "p99 ms", "errors"):
        shown.add_column(column, justify="right")
    for contender, found in record["scenarios"][name]["contenders"].items():
        best = " (best peer)" if contender == record["scenarios"][name]["best_peer"] else ""
        shown.add_row(
            record["titles"][contender] + best,
            spread(found.get("per_second"), 0),
            spread(found.get("p50_ms"), 1),
            spread(found.get("p99_ms"), 1),
            str(found["errors"]),
        )
    ratios = record["scenarios"][name]["ratios"]
    if ratios:
        measures = ("per_second", "p50_ms", "p99_ms")
        shown.add_section()
        shown.add_row(
            "edgewright's over the best peer's", *(spread(ratios.get(each), 2) for each in measures)
        )
    return shown


def start_table(record: Record) -> Table:
    """One row a server."""
    shown = Table(title="Start and memory")
    shown.add_column("")
    for column in ("start to first answer, s", "memory after all, MiB", "setting"):
        shown.add_column(column, justify="right")
    for contender, found in record["servers"].items():
        taken = record["peer_settings"].get(contender, {}).get("taken", "as by default")
        shown.add_row(
            record["titles"][contender],
            spread(found["ready_s"], 2),
            spread(found["memory_mib"], 0),
            taken,
        )
    return shown


def spread(found: Mapping[str, float] | None, digits: int) -> str:
    """The median, and the least and the most."""
    if not found:
        return "none"
    median, least, most = (f"{found[each]:.{digits}f}" for each in ("median", "least", "most"))
    return f"{median} ({least} to {most})"


def remarks(record: Record) -> list[str]:
    """What the columns mean, what else was found, and where it comes from."""
    given, file = record["settings"], record["file"]
    apart = (
        ""
        if file["batch_invariant"]
        else (
            "; a text's scores depend on the texts beside it: edgewright runs them row by row, the "
            "peers in batches"
        )
    )
    lines = [
        f"{record['subject']}; all serve {file['variant']}{apart}",
        f"medians of {given['rounds']} round(s) of {given['seconds']:g} s, with the least and the "
        "most; ratios round by round",
    ]
    lines += [
        f"no server, {words} words, threads x batch, texts a second: "
        + ", ".join(f"{how} {spread(found, 0)}" for how, found in rates.items())
        for words, rates in record["session_only"].items()
    ]
    if record["busiest_others"] > 0.1:
        lines.append(f"other processes had up to {record['busiest_others']:.2f} cores meanwhile")
    lines += [f"without {name}: {reason}" for name, reason in record["left_out"].items()]
    return [*lines, machine(record)]
