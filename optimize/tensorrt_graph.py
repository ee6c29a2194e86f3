"""An NNCF model (QDQ) as TensorRT reads it: int8 alone, and no zero points.

The ranges are those that NNCF found, made symmetric: a tensor of -1 to 3 gets the steps of -3 to 3.
Weights are symmetric int8 by channel as they are, and biases float.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from edgewright.optimize.passes.edits import constant, initializer


def for_tensorrt(model: ir.Model) -> None:
    """Make every quantised activation symmetric int8, in place."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for quantize in model.graph:
        if quantize.op_type == "QuantizeLinear":
            _make_symmetric(model.graph, quantize)
    RemoveUnusedNodesPass()(model)


def _make_symmetric(graph: ir.Graph, quantize: ir.Node) -> None:
    codes = quantize.outputs[0]
    users = [use.node for use in codes.uses()]
    scale, zero_point = (_parameter(each) for each in quantize.inputs[1:3])
    if zero_point.dtype == np.int8 and not zero_point.any():
        return
    limits = np.iinfo(zero_point.dtype)
    reach = np.maximum(zero_point - float(limits.min), float(limits.max) - zero_point)
    replaced = [
        initializer(
            graph, f"{codes.name}_symmetric_scale", (scale * reach / 127).astype(scale.dtype)
        ),
        initializer(graph, f"{codes.name}_no_zero_point", np.zeros_like(zero_point, dtype=np.int8)),
    ]
    for node in (quantize, *users):  # the latter dequantise: NNCF writes nothing in between
        for place, value in enumerate(replaced, start=1):
            node.replace_input_with(place, value)
    codes.type = ir.TensorType(ir.DataType.INT8)


def _parameter(value: ir.Value | None) -> NDArray[Any]:
    found = constant(value)
    if found is None:
        raise ValueError("a quantiser of NNCF without constant parameters")
    return found
