"""optimum's ORTQuantizer, with the configuration that it has for this host.

    python -m benchmarks.contenders.optimum JOB dynamic|static

Weights by channel, and ranges by minimum and maximum, its first choice. Its static configuration
quantises every operator that ONNX Runtime can, as it does when it is told nothing else.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.optimize_job import Made, OptimizeJob, Served
from edgewright.backends import get_backend
from edgewright.optimize.recipes import ONNXRUNTIME
from edgewright.proof.host import instruction_set, saturates

get_backend(ONNXRUNTIME)  # the first import of it must be the one that holds its telemetry

from datasets import Dataset  # noqa: E402 - as above
from optimum.onnxruntime import ORTQuantizer  # noqa: E402 - as above
from optimum.onnxruntime.configuration import (  # noqa: E402 - as above
    AutoCalibrationConfig,
    AutoQuantizationConfig,
)


def main(job: OptimizeJob, mode: str) -> None:
    """One run."""
    quantizer = ORTQuantizer(job.stock)
    for_host = AutoQuantizationConfig.avx2 if short() else AutoQuantizationConfig.avx512_vnni
    config = for_host(is_static=mode == "static", per_channel=True)
    ranges = calibrated(quantizer, config, job) if mode == "static" else None
    quantizer.quantize(
        save_dir=job.folder, quantization_config=config, calibration_tensors_range=ranges
    )
    command_s = time.monotonic() - job.started
    file = job.folder / f"{job.stock.stem}_quantized.onnx"
    Made([Served(ONNXRUNTIME, str(file), {})], command_s, {"host": for_host.__name__}).write(
        job.folder
    )


def short() -> bool:
    """Whether this host's products saturate, for which optimum's avx2 has its own form."""
    return saturates(instruction_set())


def calibrated(quantizer: Any, config: Any, job: OptimizeJob) -> Any:
    """The range of every activation over the calibrate rows."""
    # As lists, the arrays would be read back in double precision.
    rows = [{name: array[0] for name, array in arrays.items()} for arrays in job.calibrate_rows()]
    dataset = Dataset.from_list(rows).with_format("numpy")
    return quantizer.fit(
        dataset=dataset,
        calibration_config=AutoCalibrationConfig.minmax(dataset),
        onnx_augmented_model_name=job.folder / "augmented.onnx",
        operators_to_quantize=config.operators_to_quantize,
        batch_size=1,
    )


if __name__ == "__main__":
    main(OptimizeJob.read(Path(sys.argv[1])), sys.argv[2])
