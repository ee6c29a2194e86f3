"""Optimising side by side: edgewright, optimum, Olive and NNCF on the same model and rows.

    python -m benchmarks.optimize text --out build/benchmarks/optimize-text.json
    python -m benchmarks.optimize image --out build/benchmarks/optimize-image.json

Every tool runs in a process of its own and leaves files. Then all files are timed together and
answer the same held-out rows. benchmarks/README.md says what is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from rich.console import Console

from benchmarks.contenders.stock import REFERENCE_FILE
from benchmarks.environment import OLIVE, PeerMissingError
from benchmarks.optimize_contender import OURS, Optimizer, optimizers
from benchmarks.optimize_job import Made, Optimizing
from benchmarks.optimize_table import show
from benchmarks.process import RunFailedError
from benchmarks.record import load_average, versions, wide_console, write
from benchmarks.standing import Entry, HeldOut, entries_of, gains, race
from benchmarks.subject import Subject, subjects
from edgewright.checkpoint import Checkpoint
from edgewright.kinds import IMAGE
from edgewright.latency import Effort, inputs_from_rows
from edgewright.optimize.inputs import rows_of
from edgewright.proof.host import this_host

NAMES: Final = tuple(optimizers())
_LIBRARIES: Final = (
    "edgewright", "nncf", "onnx", "onnxruntime", "openvino", "optimum", "optimum-onnx", "torch",
    "transformers",
)  # fmt: skip
_WIDTH: Final = 190  # columns
# A smoke test: ours and one peer, hardly timed.
_QUICK_NAMES: Final = ("edgewright", "optimum-static")
_QUICK_EFFORT: Final = Effort(budget_s=1.0, max_rounds=9)
_QUICK_DROP: Final = 0.3
_QUICK_WORKLOAD: Final = "1x8,8x8"  # of texts


@dataclass(frozen=True)
class Settings:
    """What is measured, and how thoroughly."""

    optimizing: Optimizing
    effort: Effort  # of each shape

    def to_json(self) -> dict[str, Any]:
        """Without this machine's paths."""
        asked = self.optimizing
        return {
            "workload": asked.workload,
            "threads": asked.threads,
            "max_drop": asked.max_drop,
            "seconds": self.effort.budget_s,
            "restarts": self.effort.restarts,
        }


@click.command(context_settings={"show_default": True})
@click.argument("kind", type=click.Choice(list(subjects())))
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="What `edgewright finetune` wrote before. [default: one is made, in some minutes]",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    help="Folder for all that is made; files that are there are taken. [default: a scratch folder]",
)
@click.option("--max-drop", type=float, default=0.01, help="That edgewright may lose.")
@click.option("--threads", type=click.IntRange(1), default=1, help="Of every session.")
@click.option("--seconds", type=float, default=60.0, help="To time all files at one shape.")
@click.option("--restarts", type=click.IntRange(3), default=5, help="Processes for every file.")
@click.option(
    "--contender",
    "chosen",
    type=click.Choice(NAMES),
    multiple=True,
    help="May be repeated. [default: all]",
)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--quick", is_flag=True, help="A smoke test: its figures mean nothing.")
def main(
    kind: str, checkpoint: Path | None, keep: Path | None, max_drop: float, threads: int,
    seconds: float, restarts: int, chosen: tuple[str, ...], out: Path | None, quick: bool,
) -> None:  # fmt: skip
    """Compare edgewright with its peers on a model of texts or images."""
    console = wide_console(_WIDTH)
    effort = _QUICK_EFFORT if quick else Effort(budget_s=seconds, restarts=restarts)
    chosen = chosen or (_QUICK_NAMES if quick else NAMES)
    subject = subjects()[kind]
    started = load_average()
    with tempfile.TemporaryDirectory(prefix="edgewright-benchmark-") as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            checkpoint = checkpoint or subject.finetune(folder, quick=quick)
            optimizing = Optimizing(
                checkpoint=str(checkpoint.resolve()),
                stock=str(folder.resolve() / "stock" / "fp32.onnx"),
                workload=workload_of(checkpoint, _QUICK_WORKLOAD if quick else subject.workload),
                threads=threads,
                max_drop=_QUICK_DROP if quick else max_drop,
            )
            settings = Settings(optimizing, effort)
            record = compare(subject, settings, chosen, folder.resolve(), console)
        except (PeerMissingError, RunFailedError) as error:
            raise click.ClickException(str(error)) from error
    record |= {"quick": quick, "load_average": {"start": started, "end": load_average()}}
    write(record, out)
    show(record, console)


def workload_of(checkpoint: Path, for_texts: str) -> str:
    """The shapes to time; those of a model of images have its one height."""
    preprocessor = Checkpoint.open(checkpoint).preprocessor()
    if preprocessor.kind is not IMAGE:
        return for_texts
    height = preprocessor.input_shape[-2]
    return f"1x{height},8x{height}"


def compare(
    subject: Subject, settings: Settings, chosen: Sequence[str], folder: Path, console: Console
) -> dict[str, Any]:
    """The stock export, every contender's files, their accuracy and their latency.

    Raises:
        RunFailedError: there is no stock export.
    """
    python, optimizing = subject.python(), settings.optimizing
    stock = Optimizer("stock", "fp32, as exported,", ("stock",)).on(python)
    exported = stock.run(optimizing, folder / "stock")
    made, left_out = make(subject, optimizing, chosen, folder, console)
    stocks = entries_of(stock.name, stock.title, exported.served)
    files = {
        name: entries_of(name, optimizers()[name].title, each.served) for name, each in made.items()
    }
    others = [entry for found in files.values() for entry in found]
    held_out = held_out_rows(Path(optimizing.checkpoint), folder / "stock" / REFERENCE_FILE)
    console.print(f"{len(held_out.rows)} held-out rows", highlight=False)
    scores = held_out.scores([*stocks, *others], optimizing.threads)
    return {
        "benchmark": "optimize",
        "subject": subject.title,
        "kind": subject.kind,
        "settings": settings.to_json(),
        "exporter": exported.notes,
        "titles": {each.name: each.title for each in [*stocks, *others]},
        "stock": [each.name for each in stocks],
        "command_s": {
            entry.name: made[name].command_s for name, found in files.items() for entry in found
        },
        "notes": {name: dict(each.notes) for name, each in made.items()},
        "gains": {name: gains(made[name].notes) for name in OURS if name in made},
        "reference_right": int((held_out.reference == held_out.labels).sum()),
        "scores": scores,
        "races": races(settings, stocks, others, held_out, console),
        "left_out": left_out,
        "host": this_host().to_json(),
        "versions": versions(_LIBRARIES),
    }


def make(
    subject: Subject,
    optimizing: Optimizing,
    chosen: Sequence[str],
    folder: Path,
    console: Console,
) -> tuple[dict[str, Made], dict[str, str]]:
    """What every contender makes; and by name why another makes nothing."""
    made: dict[str, Made] = {}
    left_out: dict[str, str] = {}
    for name, optimizer in optimizers().items():
        if name not in chosen or subject.kind not in optimizer.kinds:
            continue
        try:
            made[name] = on_its_python(optimizer, subject).run(optimizing, folder / name)
        except (PeerMissingError, RunFailedError) as error:
            left_out[name] = str(error)
            console.print(f"[yellow]without {optimizer.title}: {error}[/yellow]", highlight=False)
        else:
            console.print(f"{optimizer.title}: {made[name].command_s:.1f} s", highlight=False)
    return made, left_out


def on_its_python(optimizer: Optimizer, subject: Subject) -> Optimizer:
    """Ours needs the model's code, Olive its own environment.

    Raises:
        PeerMissingError: there is no such environment.
    """
    if optimizer.name in OURS:
        return optimizer.on(subject.python())
    return optimizer.on(OLIVE.python()) if optimizer.name.startswith("olive") else optimizer


def held_out_rows(checkpoint: Path, reference: Path) -> HeldOut:
    """The checkpoint's test split, one row per near-duplicate group."""
    opened = Checkpoint.open(checkpoint)
    preprocessor = opened.preprocessor()
    test = opened.examples().split("test").one_per_group()
    return HeldOut(preprocessor, rows_of(preprocessor, test), test.labels, np.load(reference))


def races(
    settings: Settings,
    stocks: Sequence[Entry],
    others: Sequence[Entry],
    held_out: HeldOut,
    console: Console,
) -> dict[str, Any]:
    """Latency by shape."""
    make_inputs = inputs_from_rows(held_out.preprocessor, held_out.rows)
    found = {}
    for shape in settings.optimizing.workload.split(","):
        console.print(f"latency at {shape}, load average {load_average()}", highlight=False)
        found[shape] = race(
            stocks,
            others,
            shape,
            make_inputs,
            threads=settings.optimizing.threads,
            effort=settings.effort,
        ).to_json([each.name for each in stocks])
    return found


if __name__ == "__main__":
    main()
