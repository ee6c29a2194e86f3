"""Serving side by side: edgewright, LitServe, BentoML, MLServer and PyTriton with the same file.

    python -m benchmarks.serve --prepare                # environments, bundle, settings of peers
    python -m benchmarks.serve --out build/benchmarks/serve.json

One server runs at a time, in an environment of its own; rounds go forwards and backwards. A run
that was broken off goes on where it was. benchmarks/README.md says what is measured.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from benchmarks.environment import ROOT, PeerMissingError
from benchmarks.load import LoadGeneratorError, build_load_generator
from benchmarks.process import RunFailedError
from benchmarks.record import load_average, wide_console, write
from benchmarks.serve_contender import OURS, contenders
from benchmarks.serve_environment import python_of
from benchmarks.serve_rounds import Plan, Ready, compare, forget
from benchmarks.serve_subject import Questions, prepare
from benchmarks.serve_table import show
from benchmarks.serve_tuning import tuned
from benchmarks.serve_visit import Scenario, Trial, Visitor

NAMES: Final = tuple(contenders())
SCENARIOS: Final = tuple(
    Scenario(*each) for each in ((1, 12), (32, 12), (256, 12), (1, 80), (32, 80))
)
_BUSY: Final = 0.5  # load average above which another's work would show
_WORK: Final = ROOT / "build" / "benchmarks" / "serve"
_QUICK: Final = Trial(seconds=0.5, warmup=0.2)


def _names(_context: Any, _option: Any, names: tuple[str, ...]) -> tuple[Scenario, ...]:
    try:
        pairs = [tuple(map(int, name.split("x"))) for name in names]
        return tuple(Scenario(callers, words) for callers, words in pairs) or SCENARIOS
    except ValueError as error:
        raise click.BadParameter("CALLERSxWORDS, as 32x12") from error


def _leave(number: int, _frame: Any) -> None:
    """So that the server under way is ended as well."""
    sys.exit(128 + number)


@click.command(context_settings={"show_default": True})
@click.option(
    "--contender",
    "chosen",
    type=click.Choice(NAMES),
    multiple=True,
    help="May be repeated. [default: all]",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    callback=_names,
    metavar="CALLERSxWORDS",
    help="May be repeated. [default: 1x12, 32x12, 256x12, 1x80, 32x80]",
)
@click.option("--rounds", type=click.IntRange(1), default=3)
@click.option("--seconds", type=click.FloatRange(0.1), default=4.0, help="Of a scenario, measured.")
@click.option("--warmup", type=click.FloatRange(0), default=1.0, help="Seconds before them.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=_WORK,
    help="Folder of environments, bundle and unfinished runs.",
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="To serve. [default: one is made in the folder, in some minutes]",
)
@click.option(
    "--prepare",
    "only_prepare",
    is_flag=True,
    help="Make environments and bundle, find every peer's best setting, and stop.",
)
@click.option(
    "--fresh", is_flag=True, help="Find settings again; take nothing of a run that was broken off."
)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--quick", is_flag=True, help="A smoke test: its figures mean nothing.")
def main(
    chosen: tuple[str, ...], scenarios: tuple[Scenario, ...], rounds: int, seconds: float,
    warmup: float, work: Path, bundle: Path | None, only_prepare: bool, fresh: bool,
    out: Path | None, quick: bool,
) -> None:  # fmt: skip
    """Compare edgewright with its peers at serving texts."""
    signal.signal(signal.SIGTERM, _leave)
    told = Console(stderr=True, highlight=False, soft_wrap=True)
    trial = _QUICK if quick else Trial(seconds, warmup)
    plan = Plan(chosen or NAMES, scenarios, trial, 1 if quick else rounds)
    started = load_average()  # before its own work shows in it
    if started > _BUSY:
        told.print(f"[yellow]warning: load average {started}: other work spoils this[/yellow]")
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        ready = make_ready(plan, work, bundle, told, quick=quick, fresh=fresh)
        if only_prepare:
            return
        record = compare(plan, ready, work, told, fresh=fresh)
    except (LoadGeneratorError, PeerMissingError, RunFailedError) as error:
        raise click.ClickException(str(error)) from error
    record |= {"quick": quick, "load_average": {"start": started, "end": load_average()}}
    write(record, out)
    show(record, wide_console())
    forget(plan, ready, work)


def make_ready(
    plan: Plan, work: Path, bundle: Path | None, told: Console, *, quick: bool, fresh: bool
) -> Ready:
    """Environments, the bundle, the load generator, and every peer's best setting.

    Raises:
        PeerMissingError: edgewright itself cannot be installed.
    """
    program = build_load_generator()
    subject = prepare(work, bundle, quick=quick)
    pythons: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys((OURS, *plan.chosen)):
        told.print(f"environment of {name}")
        try:
            pythons[name] = python_of(contenders()[name], work / "environments" / name)
        except PeerMissingError as error:
            if name == OURS:
                raise
            left_out[name] = str(error)
            told.print(f"[yellow]without {name}: {error}[/yellow]")
    words = sorted({each.words for each in plan.scenarios})
    visitor = Visitor(subject, Questions.of(subject, words), pythons, program, work)
    there = [each for each in pythons if each in plan.chosen]
    found = tuned(visitor, there, told, quick=quick, fresh=fresh)
    left_out |= found.left_out
    return Ready(visitor, found.settings, found.tried, left_out)


if __name__ == "__main__":
    main()
