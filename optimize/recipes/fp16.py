"""fp16 weights and arithmetic, for GPUs; inputs and logits keep their types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgewright.optimize.quantize import to_fp16
from edgewright.optimize.recipes import GPU_BACKENDS, Materials, Recipe


def _make(materials: Materials, backends: Sequence[str]) -> Mapping[str, Path]:
    path = materials.folder / "fp16.onnx"
    to_fp16(materials.source, path)
    return dict.fromkeys(backends, path)


RECIPE = Recipe("fp16", _make, only=GPU_BACKENDS)
