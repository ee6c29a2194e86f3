"""Embedding tables as int8: a quarter of their bytes, and no row is dequantised but those read.

    Gather(table, ids)  ->  Cast(Gather(int8 table, ids)) * Gather(scales, ids)

Each row of a table has a scale of its own: the norms of embeddings differ by token, and one scale
for all would round the rare ones away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from edgewright.optimize.export import save
from edgewright.optimize.passes.edits import initializer

_LEAST_BYTES: Final = 4096  # a smaller table is not worth three more operators


def quantize_embeddings(source: Path, target: Path) -> bool:
    """Write ``source`` with the float tables that it gathers rows of as int8.

    Returns:
        Whether there was any; else nothing is written.
    """
    model = ir.load(source)
    gathers = [node for node in model.graph if _table(node) is not None]
    for gather in gathers:
        _quantize(model.graph, gather)
    if gathers:
        save(model, target)
    return bool(gathers)


def _table(node: ir.Node) -> ir.Value | None:
    """The float table whose rows the node gathers, shape (ids, width)."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
        return None
    table = node.inputs[0]
    constant = table.const_value if table is not None and table.is_initializer() else None
    if constant is None or constant.dtype != ir.DataType.FLOAT or len(constant.shape) != 2:
        return None
    return table if constant.nbytes >= _LEAST_BYTES else None


def _quantize(graph: ir.Graph, gather: ir.Node) -> None:
    table, ids = gather.inputs
    assert table is not None and table.const_value is not None  # noqa: PT018 - by _table
    codes, scales = by_row(table.const_value.numpy())
    name = table.name
    rows = ir.node("Gather", [_stored(graph, f"{name}_int8", codes), ids])
    scale = ir.node("Gather", [_stored(graph, f"{name}_scales", scales), ids])
    cast = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT})
    scaled = ir.node("Mul", [cast.outputs[0], scale.outputs[0]])
    new = [rows, scale, cast, scaled]
    for node in new:
        node.name = f"{gather.name}_{node.op_type}_{node is scale:d}"
    ir.convenience.replace_nodes_and_values(
        graph, gather, [gather], new, [gather.outputs[0]], [scaled.outputs[0]]
    )
    if not table.uses():
        del graph.initializers[str(table.name)]


def by_row(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 codes of shape (rows, width) and scales (rows, 1): table = codes * scales."""
    largest = np.abs(table).max(axis=1, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(table / scales).astype(np.int8), scales


def _stored(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """The initializer of this name; a table that is gathered twice is stored once."""
    if name in graph.initializers:
        return graph.initializers[name]
    return initializer(graph, name, array)
