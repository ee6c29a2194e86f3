"""Who optimises, and one run of one of them in a process of its own."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.optimize_job import MADE_FILE, Made, OptimizeJob, Optimizing
from benchmarks.process import run_module
from edgewright.proof.host import available_cores

OURS: Final = ("edgewright", "edgewright-onnxruntime", "edgewright-size")


@dataclass(frozen=True)
class Optimizer:
    """One way of making a model fast, as a module that is run with a job."""

    name: str
    title: str
    arguments: tuple[str, ...]  # module below ``benchmarks.contenders``, and what follows the job
    kinds: tuple[str, ...] = ("text", "image")  # of models that it does anything for
    python: str = sys.executable

    def run(self, optimizing: Optimizing, folder: Path) -> Made:
        """Make files once, on all cores, in ``folder``; what was made there before is taken.

        Raises:
            RunFailedError: the process failed.
        """
        if (folder / MADE_FILE).is_file():
            return Made.read(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        job = OptimizeJob(optimizing, str(folder), time.monotonic())
        module, *rest = self.arguments
        run_module(
            self.name,
            module,
            job.to_json(),
            folder,
            threads=available_cores(),
            rest=rest,
            python=self.python,
        )
        return Made.read(folder)

    def on(self, python: Path) -> Optimizer:
        """The same, run by another interpreter."""
        return replace(self, python=str(python))


def optimizers() -> dict[str, Optimizer]:
    """Every contender by name, ours first."""
    # Dynamic int8 leaves convolutions in float: of a convolutional network nothing comes of it.
    texts = ("text",)
    every = (
        Optimizer("edgewright", "edgewright", ("optimize",)),
        Optimizer(
            "edgewright-onnxruntime",
            "edgewright, ONNX Runtime alone",
            ("optimize", "--backend", "onnxruntime"),
        ),
        Optimizer("edgewright-size", "edgewright, for size", ("optimize", "--prefer", "size")),
        Optimizer("optimum-dynamic", "optimum, dynamic", ("optimum", "dynamic"), texts),
        Optimizer("optimum-static", "optimum, static", ("optimum", "static")),
        Optimizer("olive-dynamic", "Olive, dynamic", ("olive", "dynamic"), texts),
        Optimizer("olive-static", "Olive, static, its default S8S8", ("olive", "static", "int8")),
        Optimizer("olive-static-u8", "Olive, static, U8U8", ("olive", "static", "uint8")),
        Optimizer("nncf", "NNCF", ("nncf",)),
    )
    return {each.name: each for each in every}
