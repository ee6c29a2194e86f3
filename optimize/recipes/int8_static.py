"""int8 with fixed ranges: one set of statistics, one form of the graph for each runtime.

onnxruntime  uint8 activations, products as ONNX Runtime's own operators
tensorrt     symmetric int8 activations, weights of 8 bits whatever this host's CPU does
any other    NNCF's QDQ as it is
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgewright.optimize.export import save
from edgewright.optimize.quantize import is_convolutional, quantize_static
from edgewright.optimize.recipes import (
    GPU_BACKENDS,
    ONNXRUNTIME,
    SEVEN_BITS,
    TENSORRT,
    Materials,
    Recipe,
    int8_options,
)

if TYPE_CHECKING:
    import onnx_ir as ir

STATIC: Final = "int8-static"


def _make(materials: Materials, backends: Sequence[str]) -> Mapping[str, Path]:
    cpu = [each for each in backends if each not in GPU_BACKENDS]
    gpu = [each for each in backends if each in GPU_BACKENDS]
    if not materials.reduce_range:
        return _write(materials, backends, reduce_range=False)
    return {
        **(_write(materials, cpu, reduce_range=True) if cpu else {}),
        **(_write(materials, gpu, reduce_range=False) if gpu else {}),
    }


def _write(
    materials: Materials, backends: Sequence[str], *, reduce_range: bool
) -> Mapping[str, Path]:
    import onnx_ir as ir

    model = quantize_static(materials.source, materials.calibration, reduce_range=reduce_range)
    save(model, qdq_file(materials.folder, reduce_range=reduce_range))
    statistics = ir.to_proto(model)
    paths = {each: materials.folder / f"{STATIC}.{each}.onnx" for each in backends}
    for backend, path in paths.items():
        form = ir.from_proto(statistics)
        rewriter(backend, materials.source)(form)
        save(form, path)
    return paths


def qdq_file(folder: Path, *, reduce_range: bool) -> Path:
    """Where NNCF's model is kept as it is: layers go back to float from there."""
    return folder / f"{STATIC}{SEVEN_BITS if reduce_range else ''}.qdq.onnx"


def rewriter(backend: str, source: Path) -> Callable[[ir.Model], None]:
    """What makes a backend's form of NNCF's model of ``source``, in place."""
    from edgewright.optimize import onnxruntime_graph, tensorrt_graph

    if backend == TENSORRT:
        return tensorrt_graph.for_tensorrt
    if backend != ONNXRUNTIME:
        return lambda _model: None
    if is_convolutional(source):
        return onnxruntime_graph.unsigned_activations
    return onnxruntime_graph.for_onnxruntime


RECIPE = Recipe(STATIC, _make, int8_options)
