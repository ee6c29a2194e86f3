"""Who is compared, and one run of one of them in a process of its own."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.job import Job, Outcome, Training
from benchmarks.process import run_module

OURS: Final = "edgewright"


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
        job = Job(training, seed, str(folder), time.monotonic())
        module, *rest = self.arguments
        run_module(
            f"{self.name}, seed {seed}",
            module,
            job.to_json(),
            folder,
            threads=training.threads,
            rest=rest,
            python=self.python,
        )
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
