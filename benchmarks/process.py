"""A contender's module, run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import ROOT


class RunFailedError(Exception):
    """A contender's process ended with an error; the message is its last lines."""


def run_module(
    name: str,
    module: str,
    job: Mapping[str, Any],
    folder: Path,
    *,
    threads: int,
    rest: Sequence[str] = (),
    python: str = sys.executable,
) -> None:
    """Leave the job in ``folder``, and run ``benchmarks.contenders.MODULE`` with it.

    Raises:
        RunFailedError: the process failed; ``name`` says whose.
    """
    file = folder / "job.json"
    file.write_text(json.dumps(dict(job)))
    done = subprocess.run(
        [python, "-m", f"benchmarks.contenders.{module}", str(file), *rest],
        cwd=ROOT,
        env=thread_environment(threads),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise RunFailedError(f"{name}: exit {done.returncode}\n{tail}")


def thread_environment(threads: int) -> dict[str, str]:
    """The environment of a contender: its threads, and no network."""
    limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    return {**os.environ, **dict.fromkeys(limits, str(threads)), **quiet}
