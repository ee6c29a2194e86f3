"""Exact rewrites of an fp32 ONNX graph: fewer nodes, the same answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgewright.optimize.passes.dead_tokens import drop_dead_tokens
from edgewright.optimize.passes.fold_constants import fold_constants
from edgewright.optimize.passes.shapes import fix_sizes
from edgewright.optimize.passes.spelling import respell

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class GraphPass:
    """A rewrite in place; it returns why it has nothing to do, or None."""

    name: str
    rewrite: Callable[[ir.Model], str | None]


# In this order: each finds what the one before laid bare.
PASSES: Final = (
    GraphPass("fix-sizes", fix_sizes),
    GraphPass("fold-constants", fold_constants),
    GraphPass("respell", respell),
    GraphPass("drop-dead-tokens", drop_dead_tokens),
)
