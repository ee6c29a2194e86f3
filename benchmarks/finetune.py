"""Fine-tuning side by side: edgewright, Hugging Face Trainer and SetFit on the same rows.

    python -m benchmarks.finetune --seeds 3 --out build/benchmarks/finetune.json

Every run is a process of its own. A round gives each contender one seed, forwards in one round and
backwards in the next, so that what else the machine does falls on all of them; each is compared
with edgewright of its own round. benchmarks/README.md says what is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from rich.console import Console

from benchmarks.comparison import Comparison, Run
from benchmarks.contender import OURS, Contender, contenders
from benchmarks.environment import SETFIT, PeerMissingError
from benchmarks.finetune_table import show
from benchmarks.job import Training
from benchmarks.news import News
from benchmarks.process import RunFailedError
from benchmarks.record import load_average, scratch, versions, wide_console, write
from demo import minilm_folder
from edgewright.proof.host import available_cores, this_host

NAMES: Final = tuple(contenders())
_LIBRARIES: Final = ("edgewright", "torch", "transformers", "accelerate", "numpy")
# A smoke test: one peer, one seed, a slice of the rows.
_QUICK: Final = {"seeds": 1, "rows": 24, "heldout": 16, "epochs": 1, "max_length": 16}
_QUICK_PEERS: Final = ("trainer-frozen",)


@click.command(context_settings={"show_default": True})
@click.option("--seeds", type=click.IntRange(1), default=3, help="Rounds, each with another seed.")
@click.option("--rows", type=click.IntRange(10), default=852, help="To train on.")
@click.option("--heldout", type=click.IntRange(2), default=400, help="Rows to score on.")
@click.option("--epochs", type=click.IntRange(1), default=3)
@click.option("--batch-size", type=click.IntRange(1), default=16)
@click.option("--max-length", type=click.IntRange(8), default=128, help="Tokens.")
@click.option("--lr", type=float, default=1e-4, help="Of all but SetFit, which keeps its own.")
@click.option("--freeze", "frozen", type=click.IntRange(1), default=4, help="Blocks of six.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "auto"]),
    default="fp32",
    help="Of all but SetFit; auto: each tool's default.",
)
@click.option("--threads", type=click.IntRange(1), help="[default: the cores there are]")
@click.option(
    "--contender",
    "chosen",
    type=click.Choice(NAMES[1:]),
    multiple=True,
    help="Beside edgewright; may be repeated. [default: all]",
)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
@click.option("--quick", is_flag=True, help="A smoke test: its figures mean nothing.")
def main(
    seeds: int, rows: int, heldout: int, chosen: tuple[str, ...], out: Path | None, quick: bool,
    threads: int | None, **numbers: Any,
) -> None:  # fmt: skip
    """Compare edgewright with its peers on BBC News and MiniLM, and print ratios and accuracies."""
    if quick:
        seeds, rows, heldout = _QUICK["seeds"], _QUICK["rows"], _QUICK["heldout"]
        numbers |= {name: _QUICK[name] for name in ("epochs", "max_length")}
        chosen = chosen or _QUICK_PEERS
    console = wide_console()
    started = load_average()
    compared, left_out = entrants(chosen or NAMES)
    for name, reason in left_out.items():
        console.print(f"[yellow]without {name}: {reason}[/yellow]")
    news = News.draw(rows, max(8, rows // 7), heldout)
    with tempfile.TemporaryDirectory(prefix="edgewright-benchmark-") as folder:
        data, held = news.write(Path(folder))
        training = Training(
            model=str(minilm_folder()), data=str(data), heldout=str(held),
            threads=threads or available_cores(), **numbers,
        )  # fmt: skip
        record = {
            "benchmark": "finetune",
            "quick": quick,
            "settings": settings(training),
            "rows": news.counts,
            "titles": {each.name: each.title for each in compared},
            "left_out": left_out,
            "host": this_host().to_json(),
            "versions": versions(_LIBRARIES),
        }
        labels = np.array([label for _, label in news.heldout])
        runs: list[Run] = []
        for run in rounds(compared, training, seeds, labels, Path(folder), console):
            runs.append(run)
            if len(runs) % len(compared) == 0:  # a round is whole; what is stopped later has it
                load = {"start": started, "end": load_average()}
                record |= {"load_average": load, **Comparison(OURS, runs).to_json()}
                write(record, out)
    show(record, console)


def entrants(chosen: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """Who can run, edgewright first; and by name why another cannot."""
    known = contenders()
    names = [name for name in known if name == OURS or name in chosen]
    left_out: dict[str, str] = {}
    if "setfit" in names:
        try:
            known["setfit"] = known["setfit"].on(SETFIT.python())
        except PeerMissingError as error:
            left_out["setfit"] = str(error)
    return [known[name] for name in names if name not in left_out], left_out


def rounds(
    compared: Sequence[Contender],
    training: Training,
    seeds: int,
    labels: np.ndarray[Any, Any],
    folder: Path,
    console: Console,
) -> Iterator[Run]:
    """Every contender with every seed, in turns."""
    for seed in range(seeds):
        for contender in compared if seed % 2 == 0 else reversed(compared):
            before = load_average()
            with scratch(folder) as place:
                try:
                    outcome = contender.run(training, seed, place / contender.name)
                except RunFailedError as error:
                    raise click.ClickException(str(error)) from error
            run = Run(
                contender.name, seed, outcome, np.array(outcome.predictions) == labels, before
            )
            console.print(
                f"seed {seed}  {contender.title}: {outcome.train_s:.1f} s of training, "
                f"{outcome.command_s:.1f} s in all, {run.right.mean():.1%} right",
                highlight=False,
            )
            yield run


def settings(training: Training) -> dict[str, Any]:
    """What all were told, without this machine's paths."""
    return {k: v for k, v in asdict(training).items() if k not in ("data", "heldout", "model")}


if __name__ == "__main__":
    main()
