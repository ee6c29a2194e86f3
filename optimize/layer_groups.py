"""Layers of an int8 model that go back to float together.

NNCF's model is the fp32 graph with more nodes in it: a quantiser before a product, a product with
SmoothQuant's scales before that, int8 weights in the place of float ones, and biases moved by what
rounding shifts. All other values keep their names. So a layer is float again when its nodes read
what the nodes of the same name read in the fp32 graph, weights and biases included.

Nodes that read one quantised activation make one group: query, key and value, or a convolution and
the addition that goes round it. Half of a group in float would save nothing, for the activation
would be rounded for the other half all the same.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from edgewright.errors import ConfigError
from edgewright.optimize.passes.edits import constant, producer

_PRODUCTS: Final = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Gather"})
# NNCF quantises before these where it may, and not again behind them.
_PASSED: Final = frozenset(
    {"Reshape", "Transpose", "Gather", "Slice", "Squeeze", "Unsqueeze", "Split", "Flatten",
     "Identity", "MaxPool", "Concat", "Pad", "Relu", "Clip"}
)  # fmt: skip


@dataclass(frozen=True)
class FloatInput:
    """Input ``index`` of the node that makes ``output``, and the value that it reads in float."""

    output: str  # the first output: unique in a graph, which names of nodes need not be
    index: int
    source: str  # an activation of the int8 graph, or a constant of the fp32 one


@dataclass(frozen=True)
class LayerGroup:
    """What goes back to float as one."""

    name: str  # "bert/encoder/layer.0/attention/self: query, key, value"
    inputs: tuple[FloatInput, ...]
    has_weights: bool  # False: a product of two activations, an addition


def lift_constants(model: ir.Model) -> ir.Model:
    """The same model, changed in place: constants are initializers, whoever wrote it."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return model


def find_groups(quantized: ir.Model, fp32: ir.Model) -> list[LayerGroup]:
    """The groups of NNCF's QDQ model, in the order of its graph.

    Args:
        quantized: as NNCF gave it, before a runtime's form is made of it; constants lifted.
        fp32: the model that was quantised, constants lifted.

    Raises:
        ConfigError: a quantised node is not in ``fp32``.
    """
    members = _Members(quantized)
    moved = _moved_constants(quantized, fp32)
    for name in moved:
        for use in quantized.graph.initializers[name].uses():
            members.join(_beside(use.node, members), use.node)
    origin = _Origin(fp32)
    return _distinct([_group(nodes, origin, moved) for nodes in members.groups()])


def _distinct(groups: Sequence[LayerGroup]) -> list[LayerGroup]:
    """The same groups, those of one name numbered."""
    seen = Counter[str]()
    found = []
    for group in groups:
        seen[group.name] += 1
        number = seen[group.name]
        found.append(group if number == 1 else replace(group, name=f"{group.name} ({number})"))
    return found


class _Members:
    """Nodes by group, joined as quantised activations are found to be shared."""

    def __init__(self, quantized: ir.Model) -> None:
        self._order = {node: place for place, node in enumerate(quantized.graph)}
        self._first: dict[ir.Node, ir.Node] = {}  # a node -> an earlier one of its group
        for dequantize in self._order:
            if dequantize.op_type != "DequantizeLinear":
                continue
            readers = list(_readers(dequantize.outputs[0]))
            if constant(dequantize.inputs[0]) is None:
                self.join(*readers)
            else:  # one weight may be that of many layers
                for use in dequantize.outputs[0].uses():
                    self.join(use.node)

    def __contains__(self, node: ir.Node) -> bool:
        return node in self._first

    def join(self, *nodes: ir.Node) -> None:
        """Put the nodes, and what they were with before, into one group."""
        roots = {self._root(node) for node in nodes}
        if roots:
            first = min(roots, key=self._order.__getitem__)
            self._first.update(dict.fromkeys(roots, first))

    def groups(self) -> list[list[ir.Node]]:
        """The nodes of each group, all in the order of the graph."""
        found: dict[ir.Node, list[ir.Node]] = {}
        for node in self._order:
            if node in self._first:
                found.setdefault(self._root(node), []).append(node)
        return list(found.values())

    def _root(self, node: ir.Node) -> ir.Node:
        while (earlier := self._first.setdefault(node, node)) is not node:
            node = earlier
        return node


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    """Nodes that compute with these codes, and those that pass them on."""
    for use in value.uses():
        yield use.node
        if use.node.op_type in _PASSED:
            for output in use.node.outputs:
                yield from _readers(output)


def _moved_constants(quantized: ir.Model, fp32: ir.Model) -> list[str]:
    """Names of constants that both have and that differ: biases that NNCF corrected."""
    found = []
    for name, value in quantized.graph.initializers.items():
        now, before = constant(value), constant(fp32.graph.initializers.get(name))
        if now is not None and before is not None and not np.array_equal(now, before):
            found.append(name)
    return found


def _beside(node: ir.Node, members: _Members) -> ir.Node:
    """The product to which a bias belongs that ``node`` adds; it may be ``node`` itself."""
    if node in members:
        return node
    makers = [value.producer() for value in node.inputs if value is not None]
    return next((maker for maker in makers if maker is not None and maker in members), node)


def _group(nodes: Sequence[ir.Node], origin: _Origin, moved: Collection[str]) -> LayerGroup:
    inputs, weights = [], dict[ir.Node, str]()
    for node in nodes:
        for index, value in enumerate(node.inputs):
            source = origin.of(node, index)
            if source is None and value is not None and value.name in moved:
                source = str(value.name)
            elif source is not None and origin.is_constant(source):
                weights.setdefault(node, source)
            if source is not None:
                inputs.append(FloatInput(str(node.outputs[0].name), index, source))
    return LayerGroup(_name(nodes, weights), tuple(inputs), has_weights=bool(weights))


class _Origin:
    """What dequantised values were before they were quantised, by name."""

    def __init__(self, fp32: ir.Model) -> None:
        self._constants = fp32.graph.initializers
        self._values = {output.name: output for node in fp32.graph for output in node.outputs}
        self._values |= {value.name: value for value in fp32.graph.inputs}

    def is_constant(self, name: str) -> bool:
        return name in self._constants

    def of(self, node: ir.Node, index: int) -> str | None:
        """The value that input ``index`` stands for; None where it is not dequantised."""
        dequantize = producer(node.inputs[index], "DequantizeLinear")
        if dequantize is None:
            return None
        quantize = producer(dequantize.inputs[0], "QuantizeLinear")
        if quantize is None:
            return self._weight(node, index)
        source = quantize.inputs[0]
        while source is not None and source.name not in self._values:  # SmoothQuant's product
            maker = source.producer()
            source = maker.inputs[0] if maker is not None else None
        if source is None:
            raise _unknown(node)
        return str(source.name)

    def _weight(self, node: ir.Node, index: int) -> str:
        output = self._values.get(node.outputs[0].name)
        twin = output.producer() if output is not None else None
        weight = twin.inputs[index] if twin is not None else None
        if weight is None or not self.is_constant(str(weight.name)):
            raise _unknown(node)
        return str(weight.name)


def _unknown(node: ir.Node) -> ConfigError:
    return ConfigError(
        f"node {node.name} ({node.op_type}) of the int8 model is not in the fp32 model, so its "
        "layer cannot go back to float"
    )


def _name(nodes: Sequence[ir.Node], weights: Mapping[ir.Node, str]) -> str:
    """What people call it: the path of its products, or of all its nodes where it has none."""
    products = [node for node in nodes if node.op_type in _PRODUCTS] or list(nodes)
    paths = list(dict.fromkeys(_path(node, weights.get(node)) for node in products))
    if len(paths) == 1:
        return paths[0]
    start = posixpath.commonpath([posixpath.dirname(path) for path in paths])
    rest = ", ".join(path.removeprefix(start).lstrip("/") for path in paths)
    return f"{start}: {rest}" if start else rest


def _path(node: ir.Node, weight: str | None) -> str:
    """ "bert/encoder/layer.0/output/dense" from a node's or a weight's name.

    optimum puts the module into the name of the node, torch.onnx into that of the weight.
    """
    name = node.name or str(node.outputs[0].name)
    if "/" in name:
        return name.strip("/").removesuffix(f"/{node.op_type}" if weight is not None else "")
    if weight is not None and "." in weight:
        return weight.removesuffix(".weight").replace(".", "/")
    return name
