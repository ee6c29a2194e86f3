"""The stock fp32 export, and what the PyTorch model answers on the test rows.

    python -m benchmarks.contenders.stock JOB

Leaves fp32.onnx, which every peer starts from, and reference.npy, int64 of shape (rows,): the
model's answers on the checkpoint's test split, one row per near-duplicate group.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.optimize_job import Made, OptimizeJob, Served
from edgewright.checkpoint import Checkpoint
from edgewright.optimize.export import Reference, export_onnx
from edgewright.optimize.given import NOTHING_GIVEN
from edgewright.optimize.inputs import rows_of
from edgewright.optimize.origin import open_origin
from edgewright.optimize.recipes import ONNXRUNTIME, OPENVINO, OPENVINO_F32
from edgewright.proof.host import available_cores

REFERENCE_FILE: Final = "reference.npy"


def main(job: OptimizeJob) -> None:
    """One export."""
    origin = open_origin(Path(job.optimizing.checkpoint), NOTHING_GIVEN)
    examples = Checkpoint.open(Path(job.optimizing.checkpoint)).examples()
    sample = rows_of(origin.preprocessor, examples.split("search"))
    export = export_onnx(origin, job.folder, sample)
    command_s = time.monotonic() - job.started

    rows = rows_of(origin.preprocessor, examples.split("test").one_per_group())
    logits = Reference(origin, threads=available_cores()).logits(rows)
    np.save(job.folder / REFERENCE_FILE, logits.argmax(axis=1))
    file = str(export.path)
    served = [Served(ONNXRUNTIME, file, {}), Served(OPENVINO, file, OPENVINO_F32)]
    Made(served, command_s, {"exporter": export.exporter, "opset": export.opset}).write(job.folder)


if __name__ == "__main__":
    main(OptimizeJob.read(Path(sys.argv[1])))
