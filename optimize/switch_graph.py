"""One graph in which every layer group can be int8 or float, as an input says.

    switches    bool of shape (groups,): True is int8

Every input of a group that is dequantised becomes If(switch, dequantised, float). So one session
answers for any subset of the groups, no file is written and loaded for each, and what is float
costs a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgewright.optimize.layer_groups import FloatInput, LayerGroup
from edgewright.optimize.passes.edits import initializer, producer
from edgewright.optimize.restore import FloatValues

SWITCHES: Final = "switches"


def add_switches(quantized: ir.Model, fp32: ir.Model, groups: Sequence[LayerGroup]) -> None:
    """Give NNCF's QDQ model the input ``switches``, in place."""
    graph, values = quantized.graph, FloatValues(quantized, fp32)
    switches = ir.Value(
        name=SWITCHES,
        shape=ir.Shape([len(groups)]),
        type=ir.TensorType(ir.DataType.BOOL),
    )
    graph.inputs.append(switches)
    for place, group in enumerate(groups):
        index = initializer(graph, f"switch_{place}_index", np.array(place))
        pick = ir.node("Gather", [switches, index], name=f"switch_{place}")
        graph.insert_before(graph[0], pick)
        _switch(graph, values, group, pick.outputs[0])
    RemoveUnusedNodesPass()(quantized)


def _switch(graph: ir.Graph, values: FloatValues, group: LayerGroup, switch: ir.Value) -> None:
    chosen: dict[tuple[str | None, str | None], ir.Value] = {}
    for each in group.inputs:
        node, plain = values.node(each), values.value(each)
        rounded = node.inputs[each.index]
        if rounded is None:
            raise ValueError(f"input {each.index} of {node.name} is missing")
        if _is_table(node, each, plain):
            _switch_rows(graph, node, plain, switch)
            continue
        pair = (rounded.name, plain.name)
        if pair not in chosen:
            select = _select(switch, rounded, plain, f"{each.output}_{each.index}")
            graph.insert_before(node, select)
            chosen[pair] = select.outputs[0]
        node.replace_input_with(each.index, chosen[pair])


def _select(switch: ir.Value, rounded: ir.Value, plain: ir.Value, name: str) -> ir.Node:
    """If(switch, rounded, plain), where an activation is rounded inside."""
    dequantize = producer(rounded, "DequantizeLinear")
    quantize = producer(dequantize.inputs[0], "QuantizeLinear") if dequantize else None
    if quantize is None:
        int8 = [_named("Identity", [rounded], f"{name}_int8")]
    else:
        codes = _named("QuantizeLinear", list(quantize.inputs), f"{name}_codes")
        scale = list(quantize.inputs[1:])
        int8 = [codes, _named("DequantizeLinear", [codes.outputs[0], *scale], f"{name}_int8")]
    branches = {
        "then_branch": _branch(int8),
        "else_branch": _branch([_named("Identity", [plain], f"{name}_float")]),
    }
    return _named("If", [switch], f"{name}_switched", branches)


def _named(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    name: str,
    attributes: dict[str, ir.Graph] | None = None,
) -> ir.Node:
    """A node whose name is its output's too: names in a branch must not be those outside."""
    node = ir.node(op_type, inputs, attributes, name=name)
    node.outputs[0].name = name
    return node


def _branch(nodes: Sequence[ir.Node]) -> ir.Graph:
    output = nodes[-1].outputs[0]
    output.type = ir.TensorType(ir.DataType.FLOAT)
    return ir.Graph([], [output], nodes=nodes, name=f"{output.name}_branch")


def _is_table(node: ir.Node, each: FloatInput, plain: ir.Value) -> bool:
    return node.op_type == "Gather" and each.index == 0 and plain.is_initializer()


def _switch_rows(graph: ir.Graph, gather: ir.Node, table: ir.Value, switch: ir.Value) -> None:
    """Choose between rows of the two tables: the tables themselves are too large to copy."""
    attributes = {"axis": gather.attributes.get_int("axis", 0)}
    plain = ir.node("Gather", [table, gather.inputs[1]], attributes, name=f"{gather.name}_float")
    rows = gather.outputs[0]
    select = ir.node("Where", [switch, rows, plain.outputs[0]], name=f"{gather.name}_switched")
    users = [use for use in rows.uses() if use.node is not select]
    graph.insert_after(gather, [plain, select])
    for use in users:
        use.node.replace_input_with(use.idx, select.outputs[0])
