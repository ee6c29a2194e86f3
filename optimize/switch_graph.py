"""One graph in which every layer group can be int8 or float, as an input says.

    switches    bool of shape (groups,): True is int8

Every input of a group that is dequantised becomes Where(switch, dequantised, float). So one session
answers for any subset of the groups, and no file is written and loaded for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewright.optimize.layer_groups import FloatInput, LayerGroup
from edgewright.optimize.onnx_values import add_initializer
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
    chosen: dict[tuple[int, str, str], ir.Value] = {}
    for place, group in enumerate(groups):
        index = add_initializer(graph, f"switch_{place}_index", np.array(place))
        pick = ir.node("Gather", [switches, index], name=f"switch_{place}")
        graph.insert_before(graph[0], pick)
        for each in group.inputs:
            _switch(graph, values, each, pick.outputs[0], chosen, place)


def _switch(
    graph: ir.Graph,
    values: FloatValues,
    each: FloatInput,
    switch: ir.Value,
    chosen: dict[tuple[int, str, str], ir.Value],
    place: int,
) -> None:
    node, plain = values.node(each), values.value(each)
    rounded = node.inputs[each.index]
    if rounded is None:
        return
    if node.op_type == "Gather" and each.index == 0 and plain.is_initializer():
        _switch_rows(graph, node, plain, switch)
        return
    key = (place, str(rounded.name), str(plain.name))
    if key not in chosen:
        select = ir.node("Where", [switch, rounded, plain], name=f"{each.output}_{each.index}")
        graph.insert_before(node, select)
        chosen[key] = select.outputs[0]
    node.replace_input_with(each.index, chosen[key])


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
