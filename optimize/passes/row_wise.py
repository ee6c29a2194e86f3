"""Which operators work token by token: a token of the output needs that token of the input alone.

Each rule says for one operator where the axis of the tokens lies in each of its inputs, given
where it lies in the output. An input that holds the same for all tokens (a weight, a bias, the
keys that a query is compared with) has no such axis. An operator without a rule, or that mixes
tokens along the axis, is not row-wise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import onnx_ir as ir

from edgewright.optimize.passes.edits import constant
from edgewright.optimize.passes.shapes import Dims, dims

# Where the tokens lie in each input; None for an input that is read whole.
Axes = tuple[int | None, ...]


def token_axes(node: ir.Node, axis: int) -> Axes | None:
    """Where each input has the tokens that lie at ``axis`` of the outputs.

    Args:
        node: its values know their shapes.
        axis: of the outputs, counted from 0; not of size 1.

    Returns:
        One entry for each input; None where the node mixes tokens, or nobody knows.
    """
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    shape = dims(node.outputs[0])
    given = [value for value in node.inputs if value is not None]
    if rule is None or shape is None or any(dims(value) is None for value in given):
        return None
    if node.op_type != "Split" and any(output.uses() for output in node.outputs[1:]):
        return None
    return rule(node, axis, shape)


def _unary(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    return (axis, *[None] * (len(node.inputs) - 1))


def _broadcast(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    return _aligned([_dims(value) for value in node.inputs], axis, shape)


def _aligned(inputs: list[Dims], axis: int, shape: Dims) -> Axes | None:
    """Inputs that are broadcast to the shape of the output, last axis on last axis."""
    axes: list[int | None] = []
    for source in inputs:
        place = axis - (len(shape) - len(source))
        if place < 0 or source[place] == 1:
            axes.append(None)
        elif source[place] == shape[axis]:
            axes.append(place)
        else:
            return None
    return tuple(axes)


def _matmul(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    left, right = _dims(node.inputs[0]), _dims(node.inputs[1])
    if min(len(left), len(right)) < 2 or axis == len(shape) - 1:
        return None
    if axis == len(shape) - 2:
        return len(left) - 2, None
    return _aligned([left, right], axis, shape)


def _gemm(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    if axis != 0 or node.attributes.get_int("transA", 0) != 0:
        return None
    bias = _aligned([_dims(value) for value in node.inputs[2:]], axis, shape)
    return None if bias is None else (0, None, *bias)


def _softmax(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    return (axis,) if node.attributes.get_int("axis", -1) % len(shape) != axis else None


def _layer_normalization(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    first = node.attributes.get_int("axis", -1) % len(shape)
    fits = all(len(_dims(value)) <= len(shape) - first for value in node.inputs[1:])
    return _unary(node, axis, shape) if axis < first and fits else None


def _reduce(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    source = _dims(node.inputs[0])
    reduced = _axes(node, len(source))
    if not reduced:
        return None
    kept = [place for place in range(len(source)) if place not in reduced]
    if node.attributes.get_int("keepdims", 1):
        kept = list(range(len(source)))
    return _unary(node, kept[axis], shape) if kept[axis] not in reduced else None


def _transpose(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    order = node.attributes.get_ints("perm", tuple(reversed(range(len(shape)))))
    return (order[axis],)


def _squeeze(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    source = _dims(node.inputs[0])
    gone = _axes(node, len(source))
    kept = [place for place in range(len(source)) if place not in (gone or ())]
    return _unary(node, kept[axis], shape) if gone else None


def _unsqueeze(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    new = _axes(node, len(shape))
    if not new or axis in new:
        return None
    return _unary(node, axis - sum(place < axis for place in new), shape)


def _reshape(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    """Of the axis before which lie as many elements, if its size is the same."""
    source = _dims(node.inputs[0])
    for place, size in enumerate(source):
        if size == shape[axis] and _product(source[:place]) == _product(shape[:axis]):
            return place, None
    return None


def _slice(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if axes is None or axis in [int(each) % len(shape) for each in axes]:
        return None
    return _unary(node, axis, shape)


def _concat(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    joined = node.attributes.get_int("axis", 0) % len(shape)
    return None if joined == axis else tuple(axis for _ in node.inputs)


def _split(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    parted = node.attributes.get_int("axis", 0) % len(shape)
    return None if parted == axis else _unary(node, axis, shape)


def _gather(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    source, indices = _dims(node.inputs[0]), _dims(node.inputs[1])
    gathered = node.attributes.get_int("axis", 0) % len(source)
    if axis < gathered:
        return axis, None
    if axis < gathered + len(indices):
        return None, axis - gathered
    return axis - len(indices) + 1, None


def _gather_elements(node: ir.Node, axis: int, shape: Dims) -> Axes | None:
    source = _dims(node.inputs[0])
    along = node.attributes.get_int("axis", 0) % len(shape)
    return (axis, axis) if along != axis and source[axis] == shape[axis] else None


def _dims(value: ir.Value | None) -> Dims:
    return dims(value) or ()  # token_axes has seen that they are known


def _axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """Axes from the second input or, in older opsets, from the attribute; None where not fixed."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        value = constant(node.inputs[1])
        found = None if value is None else value.tolist()
    else:
        found = node.attributes.get_ints("axes", None)
    return None if found is None else tuple(int(each) % rank for each in found)


def _product(sizes: Dims) -> tuple[int, tuple[str, ...]]:
    """A number and the names that it is multiplied with, as they come in "2*rows"."""
    factors = [factor for size in sizes for factor in str(size).split("*")]
    number = math.prod(int(factor) for factor in factors if factor.isdecimal())
    return number, tuple(sorted(factor for factor in factors if not factor.isdecimal()))


_UNARY: Final = (
    "Abs Cast Ceil Clip Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity IsNaN LeakyRelu Log "
    "Mish Neg Not Reciprocal Relu Round Selu Sigmoid Sign Softplus Softsign Sqrt Tanh"
)
_BROADCAST: Final = (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow PRelu Sub "
    "Where Xor"
)
_REDUCE: Final = "ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare"
_RULES: Final[Mapping[str, Callable[[ir.Node, int, Dims], Axes | None]]] = {
    **dict.fromkeys(_UNARY.split(), _unary),
    **dict.fromkeys(_BROADCAST.split(), _broadcast),
    **dict.fromkeys(_REDUCE.split(), _reduce),
    "Concat": _concat,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
