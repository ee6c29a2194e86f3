"""Layers of an int8 model back in float."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgewright.optimize.layer_groups import FloatInput, LayerGroup
from edgewright.optimize.passes.edits import constant, initializer

_FLOAT = "_float"  # ends the name of a constant taken from the fp32 model


class FloatValues:
    """What the nodes of an int8 graph read in float: its own activations, fp32's constants."""

    def __init__(self, quantized: ir.Model, fp32: ir.Model) -> None:
        self._graph, self._constants = quantized.graph, fp32.graph.initializers
        self._nodes = {str(node.outputs[0].name): node for node in quantized.graph}
        self._values = {
            str(output.name): output for node in quantized.graph for output in node.outputs
        }
        self._values |= {str(value.name): value for value in quantized.graph.inputs}

    def node(self, each: FloatInput) -> ir.Node:
        """The node that reads it."""
        return self._nodes[each.output]

    def value(self, each: FloatInput) -> ir.Value:
        """The value that it reads in float; the same constant is added once."""
        weight = constant(self._constants.get(each.source))
        if weight is None:
            return self._values[each.source]
        name = f"{each.source}{_FLOAT}"
        if name not in self._graph.initializers:
            initializer(self._graph, name, weight)
        return self._graph.initializers[name]


def restore(quantized: ir.Model, fp32: ir.Model, groups: Iterable[LayerGroup]) -> None:
    """Put ``groups`` of NNCF's QDQ model back into float, in place.

    Their nodes read the activations as they are, without SmoothQuant's scales, and the fp32 model's
    own weights and biases. Quantisers that nobody reads any more are removed.
    """
    values = FloatValues(quantized, fp32)
    for group in groups:
        for each in group.inputs:
            values.node(each).replace_input_with(each.index, values.value(each))
    RemoveUnusedNodesPass()(quantized)
