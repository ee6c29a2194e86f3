"""How the files of candidates are made: one module for each kind of file.

A module here holds one ``RECIPE``; its line in ``edgewright.optimize.variants.RECIPES`` is all that
a new quantiser needs beside it. A new runtime needs none: it is offered every file, and what it
cannot load is left out with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgewright.optimize.export import Export
from edgewright.optimize.quantize import Calibration

SEVEN_BITS: Final = "-7bit"  # ends the precision of files made for hosts that saturate
CUDA: Final = "onnxruntime-cuda"
TENSORRT: Final = "tensorrt"
OPENVINO: Final = "openvino"
ONNXRUNTIME: Final = "onnxruntime"
GPU_BACKENDS: Final = frozenset({CUDA, TENSORRT})

_PRECISION_HINT: Final = "INFERENCE_PRECISION_HINT"
# Told nothing, OpenVINO computes in bf16 where the CPU can, and what it gains would be put down to
# whatever else the file is.
OPENVINO_F32: Final = {_PRECISION_HINT: "f32"}
OPENVINO_BF16: Final = {_PRECISION_HINT: "bf16"}


@dataclass(frozen=True)
class Materials:
    """What files are made from, and for whom."""

    export: Export  # fp32, as the exporter wrote it
    folder: Path  # exists; receives the files
    calibration: Calibration  # batches of the calibrate split, for static ranges
    backends: Sequence[str]  # the first brings the baseline
    reduce_range: bool  # weights of 7 bits, for hosts whose products saturate
    bf16: bool  # whether the CPU multiplies bf16
    profiles: str = ""  # of shapes, for TensorRT: ``backends.tensorrt.profiles``
    worked: Path | None = None  # fp32 after exact graph work; None where there was nothing to do

    @property
    def source(self) -> Path:
        """The fp32 file that all others are made from."""
        return self.worked or self.export.path


Options = Mapping[str, Mapping[str, str]]  # session options by backend


def _no_options(_materials: Materials) -> Options:
    return {}


@dataclass(frozen=True)
class Recipe:
    """One kind of file.

    ``make`` writes files for some backends and names them by backend; several may share one.
    It raises ConfigError, with the reason, where this model or host has no such file.
    """

    kind: str  # the end of a candidate's name: "int8-dynamic"
    make: Callable[[Materials, Sequence[str]], Mapping[str, Path]]
    options: Callable[[Materials], Options] = field(default=_no_options)
    only: Collection[str] | None = None  # backends that it is for; None: all

    @property
    def is_int8(self) -> bool:
        """Whether its weights have 7 bits where products saturate."""
        return self.kind.startswith("int8")


def int8_options(materials: Materials) -> Options:
    """Session options of int8 files.

    ONNX Runtime's fusion takes the bias of the product before it, which is then no longer part of
    the integer kernel; without it int8 is 6% faster on MiniLM, fp32 the same. What is left in
    float, OpenVINO computes in bf16 where the CPU can.
    """
    return {
        ONNXRUNTIME: {"optimization.disable_specified_optimizers": "SkipLayerNormFusion"},
        OPENVINO: OPENVINO_BF16 if materials.bf16 else OPENVINO_F32,
    }


def float_options(_materials: Materials) -> Options:
    """Session options of fp32 files: fp32 means fp32."""
    return {OPENVINO: OPENVINO_F32}
