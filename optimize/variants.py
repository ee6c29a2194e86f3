"""What a candidate is, and the table of how each kind of file is made.

    kind                      onnxruntime   openvino        GPU runtimes
    fp32                      baseline      in f32          x
    fp32-graph                x             in f32          x              after exact graph work
    bf16                                    in bf16
    fp16                                                    x
    int8-dynamic              x             in float: out
    int8-dynamic-embeddings   x             in float: out
    int8-static               U8S8          as NNCF made    S8S8 (TensorRT)

A candidate is a file on a runtime: that pair is searched, certified, timed, chosen and served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgewright.backends.placement import Placement
from edgewright.optimize.recipes import (
    Recipe,
    bf16,
    fp16,
    fp32,
    fp32_graph,
    int8_dynamic,
    int8_dynamic_embeddings,
    int8_static,
)

# In the order in which candidates are told. Adding a kind of file is one module and one line here.
RECIPES: Final[tuple[Recipe, ...]] = (
    fp32.RECIPE,
    fp32_graph.RECIPE,
    bf16.RECIPE,
    fp16.RECIPE,
    int8_dynamic.RECIPE,
    int8_dynamic_embeddings.RECIPE,
    int8_static.RECIPE,
)


@dataclass(frozen=True)
class Candidate:
    """A file on a runtime, and how it must be run."""

    name: str  # "onnxruntime-int8-dynamic"
    backend: str
    file: Path
    precision: str  # "fp32", "int8-dynamic", "int8-static"; with "-7bit" for 7-bit weights
    batch_invariant: bool  # False: measure, certify and serve it one row at a time
    session_options: Mapping[str, str] = field(default_factory=dict)
    placement: Placement | None = None  # what became of the file on its runtime


@dataclass(frozen=True)
class Skipped:
    """A combination that was tried and left out."""

    name: str
    reason: str
