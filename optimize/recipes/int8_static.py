"""int8 with fixed ranges: one set of statistics, one form of the graph for each runtime.

onnxruntime  uint8 activations, products as ONNX Runtime's own operators
tensorrt     symmetric int8 activations, from statistics of its own
any other    NNCF's QDQ as it is
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgewright.optimize.export import save
from edgewright.optimize.quantize import is_convolutional, quantize_static, quantize_symmetric
from edgewright.optimize.recipes import ONNXRUNTIME, TENSORRT, Materials, Recipe, int8_options


def _make(materials: Materials, backends: Sequence[str]) -> Mapping[str, Path]:
    paths = {each: materials.folder / f"int8-static.{each}.onnx" for each in backends}
    if TENSORRT in paths:
        save(quantize_symmetric(materials.source, materials.calibration), paths[TENSORRT])
    others = [each for each in backends if each != TENSORRT]
    if others:
        _write_asymmetric(materials, {each: paths[each] for each in others})
    return paths


def _write_asymmetric(materials: Materials, paths: Mapping[str, Path]) -> None:
    from edgewright.optimize.onnxruntime_graph import for_onnxruntime as products
    from edgewright.optimize.onnxruntime_graph import unsigned_activations as convolutions

    model = quantize_static(
        materials.source, materials.calibration, reduce_range=materials.reduce_range
    )
    rewrite = convolutions if is_convolutional(materials.source) else products
    # ONNX Runtime's form last: the model is rewritten in place.
    for backend in sorted(paths, key=lambda name: name == ONNXRUNTIME):
        if backend == ONNXRUNTIME:
            rewrite(model)
        save(model, paths[backend])


RECIPE = Recipe("int8-static", _make, int8_options)
