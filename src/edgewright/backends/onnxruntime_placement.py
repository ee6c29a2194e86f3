"""What ONNX Runtime runs, read from the graph that it has optimised.

It writes that graph only while it loads a file, so the file is loaded once more with the same
options. Which provider each node of the file was given, it tells of the session itself (from 1.24
on); kernels that fusions make run where their nodes were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from edgewright.backends.placement import INTEGER, Operation, Placement, Role

RECORD_ASSIGNMENTS: Final = "session.record_ep_graph_assignment_info"

_INTEGER_PRODUCTS: Final = {
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm",
    "QLinearConv", "ConvInteger", "QAttention",
}  # fmt: skip
_FLOAT_PRODUCTS: Final = {
    "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "NhwcFusedConv", "Attention",
    "MultiHeadAttention", "MatMulNBits",
}  # fmt: skip
_QUANTIZERS: Final = {"QuantizeLinear", "DynamicQuantizeLinear"}
_DEQUANTIZERS: Final = {"DequantizeLinear"}


def placement_of(runtime: str, path: Path, load: Callable[[Path], Any]) -> Placement:
    """The placement of an ONNX file.

    Args:
        runtime: the backend's name.
        path: the file.
        load: opens it as the session at hand was opened, writing the optimised graph to a path,
            and returns ONNX Runtime's own session.
    """
    import onnx

    with TemporaryDirectory(prefix="edgewright-placement-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        session = load(optimised)
        graph = onnx.load(str(optimised), load_external_data=False).graph
    before = {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}
    return Placement(runtime, tuple(_operations(graph, before, _providers(session))))


def assignments(session: Any) -> dict[str, list[Any]]:
    """Provider -> the nodes that it was given, each with ``name`` and ``op_type``.

    Empty where this ONNX Runtime does not tell, or ``RECORD_ASSIGNMENTS`` was not set.
    """
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    found: dict[str, list[Any]] = {}
    for part in tell() if tell else ():
        found.setdefault(part.ep_name, []).extend(part.get_nodes())
    return found


def _providers(session: Any) -> Callable[[str], str]:
    """Where a node of this name runs; one that a fusion named runs on the foremost provider."""
    by_name = {
        node.name: provider
        for provider, nodes in assignments(session).items()
        for node in nodes
        if node.name
    }
    foremost = session.get_providers()[0]
    return lambda name: by_name.get(name, foremost)


def _operations(
    graph: Any, before: set[str], provider: Callable[[str], str]
) -> Iterator[Operation]:
    types = {each.name: each.data_type for each in graph.initializer}
    usual = _float_name(types.values())
    for node in graph.node:
        kind = str(node.op_type)
        own = [types[name] for name in node.input if name in types]
        yield Operation(
            name=str(node.name),
            kind=kind,
            role=_role(kind),
            precision=INTEGER if kind in _INTEGER_PRODUCTS else _float_name(own, usual),
            device=provider(str(node.name)),
            fused=kind not in before and kind not in _QUANTIZERS | _DEQUANTIZERS,
        )


def _role(kind: str) -> Role:
    if kind in _INTEGER_PRODUCTS | _FLOAT_PRODUCTS:
        return Role.PRODUCT
    if kind in _QUANTIZERS:
        return Role.QUANTIZE
    return Role.DEQUANTIZE if kind in _DEQUANTIZERS else Role.OTHER


def _float_name(types: Any, otherwise: str = "fp32") -> str:
    """The float type that occurs among ONNX's type numbers; the narrowest, where several do."""
    from onnx import TensorProto

    names = {
        TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16", TensorProto.FLOAT: "fp32",
    }  # fmt: skip
    present = set(types)
    return next((name for number, name in names.items() if number in present), otherwise)
