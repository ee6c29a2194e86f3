"""Small steps on a graph: what stands behind a value, and putting one part in another's place."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of this type that gives the value; None where another or none does."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """What an initializer holds; None for a value that is computed or fed."""
    if value is None or value.const_value is None:
        return None
    if not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value.numpy()


def initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer of the graph; the name must not be taken."""
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name),
    )
    graph.register_initializer(value)
    return value


def replace(graph: ir.Graph, old: ir.Node, new: list[ir.Node]) -> None:
    """Put ``new`` in the place of ``old``; the last of them gives its output."""
    output = new[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(graph, old, [old], new, [old.outputs[0]], [output])


def operators(model: ir.Model) -> dict[str, int]:
    """How many nodes of each type there are, those of branches and loops included."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return dict(sorted(Counter(node.op_type for node in nodes).items()))
