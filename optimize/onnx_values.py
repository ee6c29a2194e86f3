"""Values of an ONNX graph: who makes one, what a constant one holds, and how to add one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes ``value``, where it is of this type."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """What an initializer holds; None for any other value."""
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    return value.const_value.numpy()


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A new initializer; there must be none of this name."""
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name),
    )
    graph.register_initializer(value)
    return value
