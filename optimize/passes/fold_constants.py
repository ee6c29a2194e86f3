"""Constant folding: what no input reaches is computed once, here, and not at every call."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from edgewright.optimize.passes.shapes import infer_shapes
from edgewright.optimize.quiet import quiet

# Elements of a constant. Above, folding is done only where the new one takes the place of as many:
# rows gathered from a table must not become a second table.
_LARGEST: Final = 8192


def fold_constants(model: ir.Model) -> None:
    """Fold constants, join equal computations and drop nodes that change nothing, in place.

    What depends on the batch or the length has no constant to be folded into: shapes inside the
    graph are inferred anew, not believed.
    """
    from onnxscript import optimizer

    infer_shapes(model)
    with quiet():
        optimizer.fold_constants(
            model,
            onnx_shape_inference=False,
            input_size_limit=_LARGEST,
            output_size_limit=_LARGEST,
        )
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
