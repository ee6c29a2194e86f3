"""Who is compared, and one run of one of them in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.job import Job, Outcome, Training, thread_environment

ROOT: Final = Path(__file__).resolve().parent.parent
OURS: Final = "edgewright"


class RunFailedError(Exception):
    """A contender's process ended with an error; the message is its last lines."""


@dataclass(frozen=True)
class Contender:
    """One way of training, as a module that is run with a job."""

    name: str
    title: str
    arguments: tuple[str, ...]  # module below ``benchmarks.contenders``, and what follows the job
    python: str = sys.executable

    def run(self, training: Training, seed: int, folder: Path) -> Outcome:
        """Train and score once, in ``folder``, which must not be there.

        Raises:
            RunFailedError: the process failed.
        """
        folder.mkdir(parents=True)
        file = folder / "job.json"
        job = Job(training, seed, str(folder), time.monotonic())
        file.write_text(json.dumps(job.to_json()))
        module, *rest = self.arguments
        done = subprocess.run(
            [self.python, "-m", f"benchmarks.contenders.{module}", str(file), *rest],
            cwd=ROOT,
            env=thread_environment(training.threads),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
            raise RunFailedError(f"{self.name}, seed {seed}: exit {done.returncode}\n{tail}")
        return Outcome.read(folder)

    def on(self, python: Path) -> Contender:
        """The same, run by another interpreter."""
        return replace(self, python=str(python))


def contenders() -> dict[str, Contender]:
    """Every contender by name; the first is what the others are compared with."""
    every = (
        Contender(OURS, "edgewright", ("edgewright", "cached")),
        Contender("trainer-full", "Trainer, full", ("trainer", "full")),
        Contender("trainer-frozen", "Trainer, frozen", ("trainer", "frozen")),
        Contender("setfit", "SetFit, 1 + 1 pairs a row", ("setfit",)),
        Contender(
            "edgewright-every-token",
            "edgewright, last block for every token",
            ("edgewright", "every-token"),
        ),
        Contender("edgewright-live", "edgewright, no cache", ("edgewright", "live")),
    )
    return {each.name: each for each in every}


def versions() -> dict[str, str]:
    """Versions of what is compared, and of what it stands on."""
    names = ("edgewright", "torch", "transformers", "accelerate", "numpy")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}
