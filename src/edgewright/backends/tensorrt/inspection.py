"""What a built engine is made of, read from TensorRT's own inspector.

The inspector's JSON is meant for people: names of layers and data types differ between versions,
so they are read leniently, and what is not understood has no precision rather than a wrong one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from edgewright.backends.placement import INTEGER, Operation, Placement, Role

_PRODUCT: Final = re.compile(r"gemm|matmul|matrix_?multiply|conv(?!ert)|mha|attention", re.I)
_QUANTIZE: Final = re.compile(r"(?<!de)quantize", re.I)
_DEQUANTIZE: Final = re.compile(r"dequantize", re.I)
_PRECISIONS: Final = (
    (re.compile(r"int8", re.I), INTEGER),
    (re.compile(r"bf16|bfloat16", re.I), "bf16"),
    (re.compile(r"fp16|half|float16", re.I), "fp16"),
    (re.compile(r"fp32|float", re.I), "fp32"),
)


def placement_of(trt: Any, engine: Any, device: str) -> Placement:
    """One operation for each of the engine's layers; an engine runs on one GPU alone."""
    inspector = engine.create_engine_inspector()
    told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    layers = [each for each in told.get("Layers", []) if isinstance(each, Mapping)]
    return Placement("tensorrt", tuple(_operation(each, device) for each in layers))


def _operation(layer: Mapping[str, Any], device: str) -> Operation:
    name, kind = str(layer.get("Name", "")), str(layer.get("LayerType", ""))
    taken = " ".join(str(each.get("Format/Datatype", "")) for each in layer.get("Inputs", [])[:1])
    return Operation(
        name=name,
        kind=kind,
        role=_role(f"{kind} {layer.get('ParameterType', '')}"),
        precision=next((word for each, word in _PRECISIONS if each.search(taken)), ""),
        device=device,
        fused="+" in name,  # TensorRT joins the names of what it fused
    )


def _role(kind: str) -> Role:
    if _PRODUCT.search(kind):
        return Role.PRODUCT
    if _DEQUANTIZE.search(kind):
        return Role.DEQUANTIZE
    return Role.QUANTIZE if _QUANTIZE.search(kind) else Role.OTHER
