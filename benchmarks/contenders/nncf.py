"""NNCF's post-training quantisation of the ONNX file, as its guide has it.

    python -m benchmarks.contenders.nncf JOB

Both runtimes are told nothing: OpenVINO takes bf16 for what is left in float where the CPU has it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import onnx

from benchmarks.optimize_job import Made, OptimizeJob, Served
from edgewright.backends import get_backend
from edgewright.optimize.quantize import CALIBRATION_BATCHES, is_convolutional
from edgewright.optimize.recipes import ONNXRUNTIME, OPENVINO

get_backend(ONNXRUNTIME)  # the first import of it must be the one that holds its telemetry
# Where this is missing NNCF reports to nobody.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import nncf  # noqa: E402 - as above


def main(job: OptimizeJob) -> None:
    """One run."""
    quantized = nncf.quantize(
        onnx.load(job.stock),
        nncf.Dataset(job.calibrate_rows()),
        subset_size=CALIBRATION_BATCHES,
        model_type=None if is_convolutional(job.stock) else nncf.ModelType.TRANSFORMER,
    )
    file = job.folder / "nncf.onnx"
    onnx.save(quantized, file)
    command_s = time.monotonic() - job.started
    served = [Served(ONNXRUNTIME, str(file), {}), Served(OPENVINO, str(file), {})]
    Made(served, command_s, {}).write(job.folder)


if __name__ == "__main__":
    main(OptimizeJob.read(Path(sys.argv[1])))
