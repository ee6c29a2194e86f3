"""An NNCF model (QDQ: every tensor quantised and at once dequantised) as ONNX Runtime runs it fast.

ONNX Runtime fuses QuantizeLinear, DequantizeLinear and a MatMul into one integer product only where
the pattern is one it knows. NNCF's is not: signed activations shared by query, key and value stay
float, the weights are dequantised at every call, and so is the whole embedding table. On MiniLM
that file is slower than fp32. Here the same numbers are written with ONNX Runtime's own operators:

    activations    int8 -> uint8, zero point + 128: the same steps, in the type its kernels take
    products       MatMulIntegerToFloat with the bias inside, weights int8 by output column
    embeddings     the rows are gathered as int8, then scaled
    the rest       float: for query x key and scores x value the int8 kernels lose
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from edgewright.optimize.passes.edits import constant, initializer, producer, replace

_MICROSOFT: Final = "com.microsoft"  # the domain of ONNX Runtime's own operators
# Operators that move values and change none.
_MOVES: Final = frozenset({"Reshape", "Transpose", "Gather", "Slice", "Squeeze", "Unsqueeze"})
_UINT8: Final = "_uint8"


def for_onnxruntime(model: ir.Model) -> None:
    """Rewrite a QDQ model of NNCF, in place, so that ONNX Runtime's CPU kernels run it in int8."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    graph = model.graph
    for gather in _nodes(graph, "Gather"):
        _gather_integers(graph, gather)
    for product in _nodes(graph, "MatMul", "Gemm"):
        _multiply_integers(graph, product)
    for dequantize in _nodes(graph, "DequantizeLinear"):
        _skip_rounding(dequantize)
        _store_as_float(graph, dequantize)
    model.opset_imports[_MICROSOFT] = 1
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)


def unsigned_activations(model: ir.Model) -> None:
    """Let every activation of a QDQ model of NNCF be uint8, in place.

    ONNX Runtime fuses convolutions and additions into integer ones by itself, but leaves those
    whose inputs differ in sign: EfficientNet-Lite0 was no faster than fp32 with 14 of 49 left, and
    twice as fast with none.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for quantize in _nodes(model.graph, "QuantizeLinear"):
        zero_point, codes = constant(quantize.inputs[2]), quantize.outputs[0]
        users = [use.node for use in codes.uses()]
        plain = all(user.op_type == "DequantizeLinear" for user in users)
        if zero_point is None or zero_point.dtype != np.int8 or not plain:
            continue
        shifted = (zero_point.astype(np.int16) + 128).astype(np.uint8)
        unsigned = initializer(model.graph, f"{codes.name}{_UINT8}", shifted)
        for node in (quantize, *users):
            node.replace_input_with(2, unsigned)
        codes.type = ir.TensorType(ir.DataType.UINT8)


def _nodes(graph: ir.Graph, *types: str) -> list[ir.Node]:
    return [node for node in graph if node.op_type in types and node.domain == ""]


def _gather_integers(graph: ir.Graph, gather: ir.Node) -> None:
    """Gather(Dequantize(table), ids) -> Cast(Gather(table, ids)) * Gather(scales, ids)."""
    dequantize = producer(gather.inputs[0], "DequantizeLinear")
    if dequantize is None or gather.attributes.get_int("axis", 0) != 0:
        return
    table, scales = dequantize.inputs[0], constant(dequantize.inputs[1])
    if constant(table) is None or scales is None or not _is_symmetric(dequantize):
        return
    by_row = scales.size > 1 and dequantize.attributes.get_int("axis", 1) == 0
    if not (by_row or scales.size == 1):
        return
    name, ids = gather.name or "", gather.inputs[1]
    rows = ir.node("Gather", [table, ids], name=f"{name}_int8")
    cast = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}_float")
    shape = (-1, 1) if by_row else ()
    scale = initializer(graph, f"{name}_scale", scales.reshape(shape))
    new = [rows, cast]
    if by_row:
        scale_of_row = ir.node("Gather", [scale, ids], name=f"{name}_scale_rows")
        new.append(scale_of_row)
        scale = scale_of_row.outputs[0]
    new.append(ir.node("Mul", [cast.outputs[0], scale], name=f"{name}_scaled"))
    replace(graph, gather, new)


def _multiply_integers(graph: ir.Graph, product: ir.Node) -> None:
    """MatMul or Gemm of a dequantised activation and weight -> MatMulIntegerToFloat."""
    quantize = _quantizer(product.inputs[0])
    weight = _integer_weight(product)
    if quantize is None or weight is None:
        return
    name = product.name or ""
    values, scales = weight
    last, bias = _bias(product, width=len(scales))
    codes, scale, zero_point = _unsigned(graph, product, quantize)
    inputs = [
        codes,
        initializer(graph, f"{name}_weight", values),
        scale,
        initializer(graph, f"{name}_weight_scale", scales),
        zero_point,
        None,
        bias,
    ]
    integer = ir.node(
        "MatMulIntegerToFloat", inputs, domain=_MICROSOFT, version=1, name=f"{name}_int8"
    )
    replace(graph, last, [integer])


def _integer_weight(product: ir.Node) -> tuple[NDArray[np.int8], NDArray[np.float32]] | None:
    """The weight as int8 (inputs, outputs) with scales (outputs,), where it is symmetric int8."""
    attributes = product.attributes
    dequantize = producer(product.inputs[1], "DequantizeLinear")
    values = constant(dequantize.inputs[0]) if dequantize else None
    scales = constant(dequantize.inputs[1]) if dequantize else None
    if dequantize is None or values is None or scales is None or not _is_symmetric(dequantize):
        return None
    scaled = attributes.get_float("alpha", 1.0) != 1 or attributes.get_float("beta", 1.0) != 1
    if values.ndim != 2 or scaled or attributes.get_int("transA", 0) != 0:
        return None
    axis = dequantize.attributes.get_int("axis", 1) % 2
    if attributes.get_int("transB", 0) != 0:
        values, axis = values.T, 1 - axis
    if scales.size > 1 and axis != 1:
        return None
    by_column = np.broadcast_to(scales.reshape(-1), values.shape[1:])
    return np.ascontiguousarray(values), np.ascontiguousarray(by_column)


def _bias(product: ir.Node, width: int) -> tuple[ir.Node, ir.Value | None]:
    """The node whose output the integer product replaces, and the bias that goes inside."""
    if product.op_type == "Gemm":
        bias = product.inputs[2] if len(product.inputs) > 2 else None
        return product, bias
    output = product.outputs[0]
    users = list(output.uses())
    if len(users) == 1 and users[0].node.op_type == "Add" and not output.is_graph_output():
        add = users[0].node
        bias = add.inputs[1 - users[0].idx]
        value = constant(bias)
        if value is not None and value.shape == (width,):
            return add, bias
    return product, None


def _quantizer(activation: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear whose codes this activation holds, perhaps reshaped since."""
    while activation is not None and (node := activation.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            return producer(node.inputs[0], "QuantizeLinear")
        if node.op_type not in _MOVES:
            return None
        activation = node.inputs[0]
    return None


def _unsigned(
    graph: ir.Graph, product: ir.Node, quantize: ir.Node
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """uint8 codes, scale and zero point of the product's activation; one for all its users."""
    dequantize = producer(product.inputs[0], "DequantizeLinear")
    source = quantize.inputs[0] if dequantize else product.inputs[0]
    scale, zero_point = quantize.inputs[1], constant(quantize.inputs[2])
    if source is None or scale is None or zero_point is None:
        raise ValueError(f"{quantize.name} has no constant zero point")  # NNCF writes one always
    for use in source.uses():
        shared = use.node.inputs[2] if (use.node.name or "").endswith(_UINT8) else None
        if shared is not None:
            return use.node.outputs[0], scale, shared
    shift = 128 if zero_point.dtype == np.int8 else 0
    shifted = (zero_point.astype(np.int16) + shift).astype(np.uint8)
    name = f"{source.name}{_UINT8}"
    unsigned = initializer(graph, f"{name}_zero_point", shifted)
    node = ir.node("QuantizeLinear", [source, scale, unsigned], name=name)
    graph.insert_before(product, node)
    return node.outputs[0], scale, unsigned


def _skip_rounding(dequantize: ir.Node) -> None:
    """Let the users of Dequantize(Quantize(x)) read x."""
    quantize = producer(dequantize.inputs[0], "QuantizeLinear")
    source = quantize.inputs[0] if quantize else None
    if source is not None:
        dequantize.outputs[0].replace_all_uses_with(source)


def _store_as_float(graph: ir.Graph, dequantize: ir.Node) -> None:
    """A weight that no integer product takes is better dequantised here than at every call."""
    values, scales = constant(dequantize.inputs[0]), constant(dequantize.inputs[1])
    if values is None or scales is None or not dequantize.outputs[0].uses():
        return
    zero = constant(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    shape = [1] * values.ndim
    if scales.size > 1:
        shape[dequantize.attributes.get_int("axis", 1)] = -1
    offset = np.int32(0) if zero is None else zero.astype(np.int32).reshape(shape)
    weight = ((values.astype(np.int32) - offset) * scales.reshape(shape)).astype(np.float32)
    stored = initializer(graph, f"{dequantize.outputs[0].name}_stored", weight)
    dequantize.outputs[0].replace_all_uses_with(stored)


def _is_symmetric(dequantize: ir.Node) -> bool:
    zero_point = constant(dequantize.inputs[2]) if len(dequantize.inputs) > 2 else None
    return zero_point is None or not np.any(zero_point)
