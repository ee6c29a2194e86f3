"""Whether a server's memory stays flat: its resident set while it answers a million calls.

    .venv/bin/python -m benchmarks.serve_memory REPOSITORY --calls 1000000

The first calls fill what is filled once: buffers of every shape, series of every metric. What
counts is whether the figures go on rising afterwards.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from benchmarks.load import Load, build_load_generator, run_load
from benchmarks.serve_protocol import TYPED
from benchmarks.serve_subject import payloads_of
from benchmarks.served import served

_ROUND_S = 30.0
_KIB_A_MIB = 1024


@click.command()
@click.argument("repository", type=click.Path(exists=True, path_type=Path))
@click.option("--calls", type=int, default=1_000_000, show_default=True)
@click.option("--callers", type=int, default=32, show_default=True)
def main(repository: Path, calls: int, callers: int) -> None:
    """Serve REPOSITORY, call it, and print its memory after every half minute of calls."""
    program = build_load_generator()
    with tempfile.TemporaryDirectory() as folder, served(repository) as server:
        load = Load(
            "grpc", server.target, TYPED.path, payloads_of(TYPED, 12, Path(folder)),
            callers=callers, seconds=_ROUND_S, warmup=0,
        )  # fmt: skip
        sent = 0
        click.echo(f"{sent:>10,} calls  {resident_mib(server.pid):7.1f} MiB")
        while sent < calls:
            result = run_load(load, program)
            sent += result.sent
            click.echo(
                f"{sent:>10,} calls  {resident_mib(server.pid):7.1f} MiB  "
                f"{result.per_second:,.0f} a second, errors {dict(result.errors)}"
            )


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (each for each in lines if each.startswith("VmRSS:"))
    return int(line.split()[1]) / _KIB_A_MIB


if __name__ == "__main__":
    main()
