"""Olive's quantisation of an ONNX file, in the environment that ``environment.OLIVE`` makes.

    python -m benchmarks.contenders.olive JOB dynamic
    python -m benchmarks.contenders.olive JOB static int8|uint8

One workflow with one pass, all but the data by its own defaults. Of activations and weights of its
static pass the default is int8 for both; uint8 for both is the other choice that its search has.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.optimize_job import Made, OptimizeJob, Served
from edgewright.backends import get_backend
from edgewright.optimize.recipes import ONNXRUNTIME

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
get_backend(ONNXRUNTIME)  # the first import of it must be the one that holds its telemetry

from olive.data.registry import Registry  # type: ignore[import-not-found] # noqa: E402 - as above
from olive.workflows import run  # type: ignore[import-not-found] # noqa: E402 - as above

_ROWS = "edgewright_calibrate_rows"


def main(job: OptimizeJob, mode: str, types: str) -> None:
    """One run."""

    def rows(**_: object) -> list[Any]:
        """(arrays by input, label) of each row, as Olive's data loaders give them."""
        return [(arrays, 0) for arrays in job.calibrate_rows()]

    Registry.register_dataset(_ROWS)(rows)
    result = run(workflow(job, quantization(mode, types)))
    file = Path(result.get_best_candidate().model_path)
    command_s = time.monotonic() - job.started
    Made([Served(ONNXRUNTIME, str(file), {})], command_s, {}).write(job.folder)


def workflow(job: OptimizeJob, quantization: dict[str, Any]) -> dict[str, Any]:
    """What `olive run --config` would read."""
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(job.stock)},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [
                    {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
                ],
            }
        },
        "passes": {"quantize": quantization},
        "host": "here",
        "target": "here",
        "cache_dir": str(job.folder / "cache"),
        "output_dir": str(job.folder / "olive"),
        "log_severity_level": 3,
    }


def quantization(mode: str, types: str) -> dict[str, Any]:
    """The one pass."""
    if mode == "dynamic":
        return {"type": "OnnxDynamicQuantization"}
    return {
        "type": "OnnxStaticQuantization",
        "precision": types,
        "activation_type": types,
        "data_config": {
            "name": "calibrate",
            "load_dataset_config": {"type": _ROWS},
            # A row comes as a batch already.
            "dataloader_config": {"type": "no_auto_batch_dataloader"},
        },
    }


if __name__ == "__main__":
    main(OptimizeJob.read(Path(sys.argv[1])), sys.argv[2], (*sys.argv[3:], "int8")[0])
