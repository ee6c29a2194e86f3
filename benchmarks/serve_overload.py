"""What is answered of many times what can be: beside the peak, and with what it costs who waits.

    .venv/bin/python -m benchmarks.serve_overload REPOSITORY

In turns a few callers get the peak, and so many that the queue has no room for them all call again
as soon as they are answered or refused, over connections as full as the server lets them be.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

import click

from benchmarks.load import Load, LoadResult, build_load_generator, run_load
from benchmarks.serve_memory import resident_mib
from benchmarks.serve_protocol import TYPED
from benchmarks.serve_subject import payloads_of
from benchmarks.served import served

_WORDS: Final = 12
_REFUSED: Final = "grpc 8"  # RESOURCE_EXHAUSTED
_CUT_OFF: Final = "unanswered"  # in flight when the segment ended


@click.command()
@click.argument("repository", type=click.Path(exists=True, path_type=Path))
@click.option("--peak-callers", default=64, show_default=True, help="Who get the peak.")
@click.option("--callers", default=2048, show_default=True, help="Who ask for too much.")
@click.option("--connections", default=16, show_default=True, help="Of the latter.")
@click.option("--seconds", default=10.0, show_default=True, help="Of a segment.")
@click.option("--rounds", default=3, show_default=True, help="Of two segments each.")
def main(
    repository: Path,
    peak_callers: int,
    callers: int,
    connections: int,
    seconds: float,
    rounds: int,
) -> None:
    """Serve REPOSITORY's model, and print goodput under overload beside the peak."""
    program = build_load_generator()
    with tempfile.TemporaryDirectory() as folder, served(repository) as server:
        few = Load(
            "grpc", server.target, TYPED.path, payloads_of(TYPED, _WORDS, Path(folder)),
            callers=peak_callers, seconds=seconds,
        )  # fmt: skip
        # What is answered after the end is not of these seconds.
        many = replace(few, callers=callers, connections=connections, warmup=0.0, drain=0.0)
        ratios = []
        for _ in range(rounds):
            peak, asked = run_load(few, program), run_load(many, program)
            ratios.append(_ratios(peak, asked, seconds))
            click.echo(_line(peak, asked, seconds, server.pid))
    raw, without = (_told(each) for each in zip(*ratios, strict=True))
    click.echo(f"goodput of peak: {raw}; without what the load generator took: {without}")


def _ratios(peak: LoadResult, asked: LoadResult, seconds: float) -> tuple[float, float]:
    """Goodput of the peak, as it is and for the cores that the generator has left the server."""
    if not peak.answered:
        raise click.ClickException(f"no call was answered: {dict(peak.errors)}")
    cores = seconds * len(os.sched_getaffinity(0))
    left = [1 - each.cpu_seconds / cores for each in (peak, asked)]
    raw = asked.answered / peak.answered
    return raw, raw * left[0] / left[1]


def _line(peak: LoadResult, asked: LoadResult, seconds: float, pid: int) -> str:
    refused = asked.errors.get(_REFUSED, 0)
    others = {each: asked.errors[each] for each in asked.errors if each not in (_REFUSED, _CUT_OFF)}
    shown = [each for each in ("p50", "p99", "max") if each in asked.latency_ms]
    times = ", ".join(f"{each} {asked.latency_ms[each]:.0f} ms" for each in shown) or "no answer"
    return (
        f"peak {peak.per_second:,.0f}/s; overload {asked.per_second:,.0f}/s answered ({times}), "
        f"{refused / seconds:,.0f}/s refused, failed {others}; "
        f"server {resident_mib(pid):.0f} MiB"
    )


def _told(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.0%} ({min(ratios):.0%} to {max(ratios):.0%})"


if __name__ == "__main__":
    main()
