"""What is optimised: a model that `edgewright finetune` makes of real rows, texts or images."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.environment import LITE0, ROOT
from benchmarks.job import write_rows
from benchmarks.process import RunFailedError, thread_environment
from demo import bbc_news, minilm_folder
from edgewright.proof.host import available_cores

# Certify is large, for certainty costs rows, and so is test, which no tool reads: on it all are
# scored.
_SPLITS: Final = "34/6/6/4/26/24"
_SEED: Final = 0
_SIDE: Final = 224  # pixels
_QUICK_ROWS: Final = 240
_QUICK_OPTIONS: Final = ("--epochs", "1", "--audit", "off", "--forgetting", "off")


@dataclass(frozen=True)
class Subject:
    """A model and the rows it learns from."""

    kind: str  # "text" or "image"
    title: str
    workload: str  # shapes of calls, rows x tokens; those of images follow the checkpoint
    options: tuple[str, ...]  # of `edgewright finetune`
    write: Callable[[Path, int | None], Path]  # leaves so many rows in a folder and says where
    python: Callable[[], Path]  # an interpreter that has the model's code

    def finetune(self, folder: Path, *, quick: bool = False) -> Path:
        """The checkpoint, made in ``folder``; ``quick`` is a few rows and one epoch.

        Raises:
            RunFailedError: the command failed.
        """
        checkpoint = folder / "checkpoint"
        rows = self.write(folder, _QUICK_ROWS if quick else None)
        typed = ["finetune", str(rows), "-o", str(checkpoint), *self.options, "--splits", _SPLITS]
        run_edgewright(self.python(), [*typed, *(_QUICK_OPTIONS if quick else ())])
        return checkpoint


def run_edgewright(python: Path, typed: Sequence[str]) -> str:
    """What an ``edgewright`` command prints; it runs on all cores.

    Raises:
        RunFailedError: it ended with an error.
    """
    done = subprocess.run(
        # From the root of the clone, where the code of the image model is found.
        [str(python), "-m", "edgewright", *typed],
        cwd=ROOT,
        env=thread_environment(available_cores()),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise RunFailedError(f"edgewright {typed[0]}: exit {done.returncode}\n{tail}")
    return done.stdout


def _write_news(folder: Path, count: int | None) -> Path:
    file = folder / "news.csv"
    articles = bbc_news()
    random.Random(_SEED).shuffle(articles)  # they come by class
    write_rows(file, articles[:count], ("text", "label"))
    return file


def _write_digits(folder: Path, count: int | None) -> Path:
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, 1998), a folder a class."""
    from PIL import Image
    from sklearn.datasets import load_digits

    found = load_digits()
    for row, (values, label) in enumerate(zip(found.images[:count], found.target, strict=False)):
        target = folder / "digits" / str(label) / f"{row}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((values * 15.9375).astype("uint8")).save(target)
    return folder / "digits"


def subjects() -> dict[str, Subject]:
    """Every subject by kind."""
    text = Subject(
        kind="text",
        title="MiniLM-L6 on BBC News, 128 tokens",
        workload="1x32,1x128,8x128",
        options=(
            "--model", str(minilm_folder()), "--max-length", "128", "--freeze", "4", "--epochs",
            "3",
        ),
        write=_write_news,
        python=lambda: Path(sys.executable),
    )  # fmt: skip
    image = Subject(
        kind="image",
        title=f"EfficientNet-Lite0 on handwritten digits, {_SIDE} x {_SIDE} pixels",
        workload="",
        options=(
            "--model", "benchmarks.lite0:lite0", "--image-size", str(_SIDE), "--image-crop", "1",
            "--freeze", "12", "--epochs", "3", "--audit", "fast", "--forgetting", "off",
        ),
        write=_write_digits,
        python=LITE0.python,
    )  # fmt: skip
    return {each.kind: each for each in (text, image)}
