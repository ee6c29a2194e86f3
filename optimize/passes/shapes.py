"""What is known of the shapes in a graph: sizes that are fixed, and names of those that vary.

Exporters compute at every call what never changes: a Reshape gets its target from a dozen nodes
that read, cut and join the shapes of other values. With the sizes known it is a constant, in which
0 says "as in the input". Batch and length stay what they are, dynamic: where a number depends on
them, it is read from the shape of an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from edgewright.errors import ConfigError
from edgewright.optimize.passes.edits import constant, initializer
from edgewright.optimize.quiet import quiet

Size = int | str  # a number, or the name of one that varies
Dims = tuple[Size, ...]

_INFERRED_ELEMENTS: Final = 1024  # of a table whose values may tell a shape
_LARGEST: Final = 2**31 - 1
_SIZES: Final = "sizes/"  # begins the names of numbers that this pass wrote


def fix_sizes(model: ir.Model) -> None:
    """Write down every number that is known of shapes, in place, and drop what computed it."""
    known = infer_shapes(model)
    graph = model.graph
    for node in list(graph):
        if node.op_type == "Reshape" and node.domain == "" and constant(node.inputs[1]) is None:
            target = reshape_target(graph, dims(node.inputs[0]), dims(node.outputs[0]))
            if target is not None:
                set_reshape_target(graph, node, target)
    RemoveUnusedNodesPass()(model)
    sizes = _Sizes(graph)
    for value in [value for node in graph for value in node.outputs]:
        numbers = known.get(value.name or "")
        if numbers is not None and _has_other_readers(value, known) and sizes.can_tell(numbers):
            value.replace_all_uses_with(sizes.tell(numbers))
    RemoveUnusedNodesPass()(model)


@dataclass(frozen=True)
class Numbers:
    """What an int64 value of the graph holds: one number, or a row of them."""

    sizes: Dims
    scalar: bool

    def __str__(self) -> str:
        text = ",".join(str(size) for size in self.sizes)
        return text if self.scalar else f"[{text}]"


def infer_shapes(model: ir.Model) -> Mapping[str, Numbers]:
    """Note on every value what is known of its shape.

    What the file says of values inside the graph is dropped first: only the shapes of inputs and
    constants are facts. Constant nodes become initializers, which is what every pass reads.

    Returns:
        Numbers by name of the value, where all of them are known: shapes and parts of them.

    Raises:
        ConfigError: shapes can only be told by guessing that two axes of the inputs are equal.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    inner = [value for node in model.graph for value in node.outputs]
    outputs = set(model.graph.outputs)
    with quiet():
        forget_shapes(model)
        inferred, numbers = _infer(without_weights(model))
    for value in inner:
        found = inferred.get(value.name or "")
        if found is not None and value not in outputs:
            value.type, value.shape = found.type, found.shape
    ranks = {
        value.name: value.shape.rank()
        for value in inner
        if value.dtype == ir.DataType.INT64 and value.shape is not None
    }
    doubtful = _by_way_of_tables(model.graph, numbers)
    return {
        name: Numbers(sizes, scalar=ranks[name] == 0)
        for name, sizes in numbers.items()
        if ranks.get(name, 2) < 2 and name not in doubtful
    }


def _by_way_of_tables(graph: ir.Graph, numbers: Mapping[str, Dims]) -> set[str]:
    """Values that were reckoned from numbers in several rows.

    The inference takes these for one row: where torch.onnx turns the order of a padding round, as
    in MobileBERT, Transpose and Slice of such a table are lost on it.
    """
    found: set[str] = set()
    for node in graph:
        if node.op_type in ("Shape", "Size"):  # told by the sizes of what they read, not by numbers
            continue
        for value in node.outputs:
            flat = value.shape is not None and value.shape.rank() < 2
            known = value.name is not None and value.name in numbers
            if known and not (flat and found.isdisjoint(_names(node))):
                found.add(str(value.name))
    return found


def _names(node: ir.Node) -> list[str]:
    return [value.name for value in node.inputs if value is not None and value.name]


def forget_shapes(model: ir.Model) -> None:
    """Drop what is noted of types and shapes inside the graph."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            if not value.is_graph_output():
                value.type = value.shape = None


def dims(value: ir.Value | None) -> Dims | None:
    """The shape by axis; None where the rank or an axis is not known."""
    if value is None or value.shape is None:
        return None
    known = [axis if isinstance(axis, int) else axis.value for axis in value.shape]
    sizes = tuple(axis if isinstance(axis, int) else str(axis) for axis in known)
    return None if None in known else sizes


def reshape_target(graph: ir.Graph, source: Dims | None, target: Dims | None) -> Dims | None:
    """What a Reshape from one shape to the other is told; None where it cannot be.

    A fixed size is written down, a varying one is 0 where it is at the same axis of the source.
    Of the rest one may be -1, and others are read from the shape of an input.
    """
    if source is None or target is None or 0 in target:  # 0 means something else here
        return None
    sizes = list(target)
    for axis, size in enumerate(target):
        if not isinstance(size, int) and source[axis : axis + 1] == (size,):
            sizes[axis] = 0
    readable = input_axes(graph)
    varying = [axis for axis, size in enumerate(sizes) if isinstance(size, str)]
    unreadable = [axis for axis in varying if sizes[axis] not in readable]
    if varying:
        sizes[(unreadable or varying)[0]] = -1
    return tuple(sizes) if len(unreadable) < 2 else None


def set_reshape_target(graph: ir.Graph, node: ir.Node, sizes: Dims) -> None:
    """Tell a Reshape of the graph its target, in which 0 copies."""
    node.replace_input_with(1, _Sizes(graph).tell(Numbers(sizes, scalar=False)))
    node.attributes.pop("allowzero", None)


def input_axes(graph: ir.Graph) -> dict[str, tuple[ir.Value, int]]:
    """An input and its axis by name of the size that varies there."""
    axes: dict[str, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, size in enumerate(dims(value) or ()):
            if isinstance(size, str):
                axes.setdefault(size, (value, axis))
    return axes


class _Sizes:
    """Numbers that a graph reads from the shapes of its inputs."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._values = {value.name: value for node in graph for value in node.outputs}
        self._axes = input_axes(graph)

    def can_tell(self, numbers: Numbers) -> bool:
        return all(isinstance(size, int) or size in self._axes for size in numbers.sizes)

    def tell(self, numbers: Numbers) -> ir.Value:
        """A value that holds the numbers; the same one for the same numbers."""
        if all(isinstance(size, int) for size in numbers.sizes):
            return _constant_sizes(self._graph, numbers)
        if len(numbers.sizes) == 1:
            return self._axis(numbers)
        parts = [self.tell(Numbers((size,), scalar=False)) for size in numbers.sizes]
        return self._once(f"{_SIZES}{numbers}", "Concat", parts, axis=0)

    def _axis(self, numbers: Numbers) -> ir.Value:
        source, axis = self._axes[str(numbers.sizes[0])]
        shape = self._once(f"{_SIZES}{source.name}", "Shape", [source])
        place = _constant_sizes(self._graph, Numbers((axis,), numbers.scalar))
        return self._once(f"{_SIZES}{numbers}", "Gather", [shape, place], axis=0)

    def _once(self, name: str, op_type: str, inputs: list[ir.Value], **attributes: int) -> ir.Value:
        if name not in self._values:
            node = ir.node(op_type, inputs, attributes, name=name)
            node.outputs[0].name = name
            self._graph.insert_before(self._first_other(), node)
            self._values[name] = node.outputs[0]
        return self._values[name]

    def _first_other(self) -> ir.Node:
        return next(node for node in self._graph if not (node.name or "").startswith(_SIZES))


def _constant_sizes(graph: ir.Graph, numbers: Numbers) -> ir.Value:
    name = f"{_SIZES}{numbers}"
    if name in graph.initializers:
        return graph.initializers[name]
    array = np.array(numbers.sizes, np.int64)
    return initializer(graph, name, array.reshape(()) if numbers.scalar else array)


def _has_other_readers(value: ir.Value, known: Mapping[str, Numbers]) -> bool:
    """Whether more than the reckoning of further sizes reads a value that is not yet ours."""
    if value.is_graph_output() or (value.name or "").startswith(_SIZES):
        return False
    readers = [use.node for use in value.uses()]
    return any(output.name not in known for reader in readers for output in reader.outputs)


def _infer(model: onnx.ModelProto) -> tuple[dict[str, ir.Value], dict[str, Dims]]:
    """Values by name with types and shapes, and numbers, by ONNX Runtime's symbolic inference."""
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

    before = _input_shapes(model)
    inference = SymbolicShapeInference(
        _LARGEST, auto_merge=True, guess_output_rank=False, verbose=0
    )
    # As its infer_shapes does, which when it cannot finish writes the model into the current
    # folder; here what it found until then is kept.
    inference._preprocess(model)
    while inference.run_:
        inference._infer_impl()
    after = _input_shapes(inference.out_mp_)
    guessed = [name for name, shape in after.items() if shape != before[name]]
    if guessed:
        raise ConfigError(f"an axis of {', '.join(guessed)} would have to be guessed")
    graph = ir.from_proto(inference.out_mp_).graph
    values = {value.name: value for node in graph for value in node.outputs if value.name}
    return values, {name: _numbers(data) for name, data in inference.sympy_data_.items()}


def _numbers(data: Any) -> Dims:
    """Integers; other expressions of sympy by their text: a name, or what no axis is called."""
    sizes = np.ravel(np.asarray(data, dtype=object)).tolist()
    return tuple(int(size) if _is_integer(size) else str(size) for size in sizes)


def _is_integer(size: Any) -> bool:
    return isinstance(size, int | np.integer) or bool(getattr(size, "is_Integer", False))


def _input_shapes(model: onnx.ModelProto) -> dict[str, bytes]:
    return {
        value.name: value.type.tensor_type.shape.SerializeToString(deterministic=True)
        for value in model.graph.input
    }


def without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model with names for all axes of its inputs, and tables named but not there.

    Their values tell no shape, and a large model would not fit into one message.
    """
    light = model.clone()
    for value in light.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(_named(value.name, value.shape))
    for name, value in light.graph.initializers.items():
        held = value.const_value
        if held is not None and len(held.shape) > 1 and held.size > _INFERRED_ELEMENTS:
            shape = ir.Shape(held.shape.numpy())
            value.const_value = ir.ExternalTensor(
                PurePath("absent"), 0, held.nbytes, held.dtype, shape=shape, name=name
            )
    proto: onnx.ModelProto = ir.to_proto(light)
    return proto


def _named(name: str | None, shape: ir.Shape) -> list[int | str]:
    return [
        size if isinstance(size, int) else str(size.value or f"{name}_{axis}")
        for axis, size in enumerate(shape)
    ]
