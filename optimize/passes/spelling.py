"""The same computation, spelt as ONNX Runtime's fusions read it.

torch.onnx writes two things of a transformer's block in a form that stays as it is: GELU as five
passes over the widest activation instead of one, and the transposed keys by way of three
dimensions, which copies them twice more.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgewright.optimize.passes.edits import constant, producer, replace
from edgewright.optimize.passes.shapes import dims, infer_shapes


def respell(model: ir.Model) -> None:
    """Spell GELU and transposed keys as ONNX Runtime knows them, in place."""
    infer_shapes(model)
    graph = model.graph
    for erf in [node for node in graph if node.op_type == "Erf" and node.domain == ""]:
        _halve_last(erf)
    for last in [node for node in graph if node.op_type == "Reshape" and node.domain == ""]:
        _transpose_at_once(graph, last)
    RemoveUnusedNodesPass()(model)


def _halve_last(erf: ir.Node) -> None:
    """x * (0.5 * (1 + erf)) -> (x * (1 + erf)) * 0.5: the same number, for 0.5 rounds nothing."""
    add = _only_reader(erf.outputs[0], "Add")
    halved = _only_reader(add.outputs[0], "Mul") if add is not None else None
    gelu = _only_reader(halved.outputs[0], "Mul") if halved is not None else None
    if add is None or halved is None or gelu is None:
        return
    half = 1 - _place(halved, add.outputs[0])
    factor = 1 - _place(gelu, halved.outputs[0])
    value = constant(halved.inputs[half])
    if value is not None and value.size == 1 and value.item() == 0.5:
        scale, x = halved.inputs[half], gelu.inputs[factor]
        halved.replace_input_with(half, x)
        gelu.replace_input_with(factor, scale)


def _transpose_at_once(graph: ir.Graph, last: ir.Node) -> None:
    """Reshape to three axes, Transpose of the last two, Reshape back -> Transpose."""
    turn = producer(last.inputs[0], "Transpose")
    first = producer(turn.inputs[0], "Reshape") if turn is not None else None
    if turn is None or first is None or turn.attributes.get_ints("perm", ()) != (0, 2, 1):
        return
    source, middle, target = dims(first.inputs[0]), dims(first.outputs[0]), dims(last.outputs[0])
    if source is None or middle is None or target is None or len(source) < 3 or len(middle) != 3:
        return
    if middle[1:] != source[-2:] or target != (*source[:-2], source[-1], source[-2]):
        return
    order = [*range(len(source) - 2), len(source) - 1, len(source) - 2]
    name = f"{last.outputs[0].name}_turned"
    replace(graph, last, [ir.node("Transpose", [first.inputs[0]], {"perm": order}, name=name)])


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    readers: Sequence[ir.Node] = [use.node for use in value.uses()]
    if len(readers) != 1 or value.is_graph_output() or readers[0].op_type != op_type:
        return None
    return readers[0]


def _place(node: ir.Node, value: ir.Value) -> int:
    return 0 if node.inputs[0] is value else 1
