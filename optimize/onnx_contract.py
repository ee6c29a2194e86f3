"""How every ONNX file of ours names what it takes and gives."""

from __future__ import annotations

from typing import Final

LOGITS: Final = "logits"  # the one output: float32 (rows, classes)
AXES: Final = ("rows", "length")  # of the inputs; images vary in rows alone
