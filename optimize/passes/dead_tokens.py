"""Dead tokens: what the last block computes for tokens that nobody reads is not computed.

A classifier reads one token of the last block, as a rule the first. From there back to the block's
input everything but the keys and values works token by token: the feed-forward, the products of
the attention's output and of its query, the attention's own rows. All of it then runs on that
token alone; keys and values stay for all tokens. As with dead code, it is found by asking backwards
from the outputs who needs what:

    nobody needs it           it is gone already
    some tokens are needed    it is computed for these, if its operator is row-wise
    all tokens are needed     it stays; a reader of some of them gets them by a Gather
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgewright.optimize.passes.edits import constant, initializer
from edgewright.optimize.passes.row_wise import Axes, token_axes
from edgewright.optimize.passes.shapes import (
    Dims,
    dims,
    infer_shapes,
    reshape_target,
    set_reshape_target,
)

_MOST_TOKENS: Final = 4
_OLDEST_OPSET: Final = 13  # from here Softmax and Squeeze mean what they mean today
_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})
_INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True)
class Tokens:
    """A few places along one axis of a value; negative ones count from the end."""

    axis: int
    places: tuple[int, ...]


def drop_dead_tokens(model: ir.Model) -> str | None:
    """Compute the last block for the tokens that are read, in place.

    Returns:
        Why there is nothing to do; None where something was done.
    """
    opset = model.opset_imports.get("", 0)
    if opset < _OLDEST_OPSET:
        return f"opset {opset}: it reads {_OLDEST_OPSET} and later"
    infer_shapes(model)
    plan = _Plan(model.graph, {node for node in model.graph if _pick(node) is not None})
    if not plan.picks:
        return "no output reads a fixed token of a sequence"
    plan = _Plan(model.graph, plan.picks_that_save())
    if not plan.picks:
        return "every product is needed for all tokens"
    _Narrowing(model.graph, plan).rewrite()
    RemoveUnusedNodesPass()(model)
    return None


class _Plan:
    """Who needs what of every value, and which nodes will compute it for some tokens only."""

    def __init__(self, graph: ir.Graph, allowed: Collection[ir.Node]) -> None:
        self._graph, self._allowed = graph, allowed
        self.picks: dict[ir.Node, Tokens] = {}  # what a Gather or Slice takes of its input
        self.row_wise: dict[ir.Node, tuple[Tokens, Axes]] = {}
        self._needed: dict[ir.Value, Tokens | None] = {}  # None: all tokens
        for output in graph.outputs:
            self._need(output, None)
        for node in reversed(graph):
            self._visit(node)

    def computed(self, value: ir.Value) -> Tokens | None:
        """The tokens that the value will hold; None: all."""
        node = value.producer()
        return self.row_wise[node][0] if node is not None and node in self.row_wise else None

    def picks_that_save(self) -> set[ir.Node]:
        """Picks for which at least one product is computed for fewer tokens."""
        return {pick for pick in self.picks if self._saves(pick.inputs[0], set())}

    def _saves(self, value: ir.Value | None, seen: set[ir.Node]) -> bool:
        node = value.producer() if value is not None else None
        if node is None or node in seen or node not in self.row_wise:
            return False
        seen.add(node)
        narrow = zip(node.inputs, self.row_wise[node][1], strict=True)
        return node.op_type in _PRODUCTS or any(
            axis is not None and self._saves(source, seen) for source, axis in narrow
        )

    def _visit(self, node: ir.Node) -> None:
        wanted = {self._needed[value] for value in node.outputs if value in self._needed}
        if not wanted:
            return
        for captured in _captured(node):
            self._need(captured, None)
        tokens = wanted.pop() if len(wanted) == 1 else None
        axes = self._row_wise_axes(node, tokens) if tokens is not None else None
        if tokens is not None and axes is not None:
            self.row_wise[node] = tokens, axes
            for value, axis in zip(node.inputs, axes, strict=True):
                self._need(value, None if axis is None else Tokens(axis, tokens.places))
            return
        for index, value in enumerate(node.inputs):
            pick = _pick(node) if index == 0 and node in self._allowed else None
            self._need(value, pick)
            if pick is not None:
                self.picks[node] = pick

    def _row_wise_axes(self, node: ir.Node, tokens: Tokens) -> Axes | None:
        axes = token_axes(node, tokens.axis)
        if axes is None or node.op_type != "Reshape":
            return axes
        return axes if _narrow_target(self._graph, node, tokens, axes) is not None else None

    def _need(self, value: ir.Value | None, tokens: Tokens | None) -> None:
        if value is not None:
            known = value in self._needed
            self._needed[value] = _union(self._needed[value], tokens) if known else tokens


class _Narrowing:
    """Lets every node of a plan compute its tokens only."""

    def __init__(self, graph: ir.Graph, plan: _Plan) -> None:
        self._graph, self._plan = graph, plan
        self._taken: dict[tuple[ir.Value, Tokens], ir.Value] = {}

    def rewrite(self) -> None:
        for node in list(self._graph):
            if node in self._plan.row_wise:
                self._narrow(node, *self._plan.row_wise[node])
            elif node in self._plan.picks:
                self._pick_anew(node, self._plan.picks[node])

    def _narrow(self, node: ir.Node, tokens: Tokens, axes: Axes) -> None:
        if node.op_type == "Reshape":
            target = _narrow_target(self._graph, node, tokens, axes)
            if target is not None:
                set_reshape_target(self._graph, node, target)
        for index, (value, axis) in enumerate(zip(node.inputs, axes, strict=True)):
            if value is not None and axis is not None:
                own = self._take(value, Tokens(axis, tokens.places), before=node)
                node.replace_input_with(index, own)

    def _pick_anew(self, node: ir.Node, pick: Tokens) -> None:
        """The pick counts among the tokens that are there now."""
        source = node.inputs[0]
        held = self._plan.computed(source) if source is not None else None
        if held is None:
            return
        places = np.array([held.places.index(place) for place in pick.places], np.int64)
        if node.op_type == "Slice":
            self._set_places(node, 1, places)
            self._set_places(node, 2, places + 1)
        else:
            self._set_places(node, 1, places)

    def _set_places(self, node: ir.Node, index: int, places: NDArray[np.int64]) -> None:
        """Of the same rank as those that were there."""
        before = constant(node.inputs[index])
        shape = places.shape if before is None else before.shape
        name = f"{node.outputs[0].name}_places_{index}"
        node.replace_input_with(index, initializer(self._graph, name, places.reshape(shape)))

    def _take(self, value: ir.Value, tokens: Tokens, *, before: ir.Node) -> ir.Value:
        """The tokens of the value, which holds more of them or all."""
        held = self._plan.computed(value)
        if held == tokens:
            return value
        if (value, tokens) not in self._taken:
            places = (
                tokens.places if held is None else [held.places.index(p) for p in tokens.places]
            )
            name = f"{value.name}_tokens_{tokens.axis}_{'_'.join(map(str, places))}"
            stored = constant(value)
            if stored is not None:
                taken = initializer(self._graph, name, stored.take(places, tokens.axis))
            else:
                index = initializer(self._graph, f"{name}_places", np.array(places, np.int64))
                node = ir.node("Gather", [value, index], {"axis": tokens.axis}, name=name)
                node.outputs[0].name = name
                self._graph.insert_before(before, node)
                taken = node.outputs[0]
            self._taken[value, tokens] = taken
        return self._taken[value, tokens]


def _narrow_target(graph: ir.Graph, node: ir.Node, tokens: Tokens, axes: Axes) -> Dims | None:
    """What a Reshape is told that gets and gives these tokens only."""
    source, shape = dims(node.inputs[0]), dims(node.outputs[0])
    if source is None or shape is None or axes[0] is None:
        return None
    before, after = list(source), list(shape)
    before[axes[0]] = after[tokens.axis] = len(tokens.places)
    return reshape_target(graph, tuple(before), tuple(after))


def _pick(node: ir.Node) -> Tokens | None:
    """The few fixed tokens that a Gather or a Slice takes of a computed sequence."""
    source = node.inputs[0] if node.inputs else None
    if node.domain != "" or source is None or source.producer() is None:
        return None
    shape = dims(source)
    if shape is None or source.dtype is None or not source.dtype.is_floating_point():
        return None
    found = None
    if node.op_type == "Gather":
        found = _gathered(node, len(shape))
    elif node.op_type == "Slice":
        found = _sliced(node, len(shape))
    return found if found is not None and shape[found.axis] != 1 else None


def _gathered(node: ir.Node, rank: int) -> Tokens | None:
    places = constant(node.inputs[1])
    if places is None or places.size > _MOST_TOKENS:
        return None
    return Tokens(node.attributes.get_int("axis", 0) % rank, tuple(places.ravel().tolist()))


def _sliced(node: ir.Node, rank: int) -> Tokens | None:
    """One token: [i, i + 1), or the last."""
    given = [constant(value) for value in node.inputs[1:]]
    if len(given) < 3 or any(each is None or each.size != 1 for each in given):
        return None
    start, end, axis, step = [*(int(each.item()) for each in given if each is not None), 1][:4]
    last = start == -1 and end >= 2**31 - 1
    return Tokens(axis % rank, (start,)) if step == 1 and (last or end == start + 1 != 0) else None


def _union(first: Tokens | None, second: Tokens | None) -> Tokens | None:
    if first is None or second is None or first.axis != second.axis:
        return None
    places = tuple(dict.fromkeys([*first.places, *second.places]))
    return Tokens(first.axis, places) if len(places) <= _MOST_TOKENS else None


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Values that the branches or the body of a node read from outside."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            yield from graph.outputs
            for inner in ir.traversal.RecursiveGraphIterator(graph):
                yield from (value for value in inner.inputs if value is not None)
