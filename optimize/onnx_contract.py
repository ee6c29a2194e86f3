"""How the inputs of every ONNX file of ours vary."""

from __future__ import annotations

from typing import Final

AXES: Final = ("rows", "length")  # of the inputs; images vary in rows alone
