"""``edgewright optimize``, typed as a user types it.

    python -m benchmarks.contenders.optimize JOB [--backend onnxruntime | --prefer size]

It starts from the checkpoint, so that its time holds the export, the search, the timing of every
candidate and the certificate. Each run has a ledger of its own: it stands for the one run that a
user would make.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.optimize_job import Made, OptimizeJob, Served
from benchmarks.subject import run_edgewright
from edgewright.bundle import Bundle

_KEPT: Final = (
    "variant", "verdict", "loss_upper_bound", "certify_n", "speedup", "speedup_interval",
    "size_ratio", "seconds", "seconds_by_stage", "skipped",
)  # fmt: skip


def main(job: OptimizeJob, extra: Sequence[str]) -> None:
    """One run."""
    started = time.monotonic()  # not ``job.started``: no user waits for this process
    told = json.loads(run_edgewright(Path(sys.executable), options(job, extra)))
    command_s = time.monotonic() - started
    bundle = Bundle.open(job.folder / "bundle")
    Made([chosen(bundle)], command_s, notes(told)).write(job.folder)


def options(job: OptimizeJob, extra: Sequence[str]) -> list[str]:
    """The command line after ``edgewright``."""
    asked = job.optimizing
    values = {
        "--output-folder": job.folder / "bundle",
        "--ledger": job.folder / "ledger",
        "--workload": asked.workload,
        "--threads": asked.threads,
        "--max-drop": asked.max_drop,
    }
    given = [str(each) for option in values.items() for each in option]
    return ["optimize", asked.checkpoint, *given, *extra, "--json"]


def chosen(bundle: Bundle) -> Served:
    """The variant that a server would take."""
    variant = bundle.chosen
    return Served(
        variant.backend,
        str(bundle.path / variant.file),
        dict(variant.session_options),
        row_by_row=not variant.batch_invariant,
    )


def notes(told: dict[str, Any]) -> dict[str, Any]:
    """What to keep of what the command told: its verdict, and every candidate's medians."""
    candidates = {
        each["name"]: {"p50_ms": each["p50_ms"], "size_bytes": each["size_bytes"]}
        for each in told["candidates"]
    }
    return {**{key: told[key] for key in _KEPT}, "candidates": candidates}


if __name__ == "__main__":
    main(OptimizeJob.read(Path(sys.argv[1])), sys.argv[2:])
