"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from edgewright.backends import TensorSpec
from edgewright.backends.placement import INTEGER, Operation, Placement, Role
from edgewright.errors import BackendUnavailableError, IntegrityError

DEVICE: Final = "CPU"
_PRODUCTS: Final = {
    "FullyConnected", "MatMul", "Convolution", "GroupConvolution", "Deconvolution", "MHA",
}  # fmt: skip
_PRECISIONS: Final = {
    "i8": INTEGER, "u8": INTEGER, "f32": "fp32", "bf16": "bf16", "f16": "fp16",
}  # fmt: skip
_NO_WORK: Final = {"Input", "Const", "Output"}
# OpenVINO's low-precision transformations name what undoes a quantisation so.
_DEQUANTIZATION: Final = "/Dequantization"


def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailableError(
            "OpenVINO is not installed; run `pip install 'edgewright[openvino]'`"
        ) from error
    return openvino


class OpenVinoSession:
    """An infer request of a model compiled for the CPU."""

    def __init__(self, compiled: Any) -> None:
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self._request = compiled.create_infer_request()

    def run(
        self, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """One forward pass; every input by name. The outputs named or, without, the first."""
        results = self._request.infer(dict(arrays), share_inputs=True)
        return {name: results[name].copy() for name in outputs or (self.outputs[0].name,)}

    def placement(self) -> Placement:
        """What runs, by the graph of the compiled model itself."""
        model = self._request.get_compiled_model().get_runtime_model()
        told = [(node.get_friendly_name(), _told(node)) for node in model.get_ordered_ops()]
        return Placement(
            "openvino",
            tuple(
                _operation(name, each) for name, each in told if each["layerType"] not in _NO_WORK
            ),
        )


class OpenVinoBackend:
    """Loads ONNX files with OpenVINO."""

    name = "openvino"

    def runtime(self) -> str:
        """Library and version, without the build's hash."""
        return f"openvino {str(_library().__version__).split('-')[0]}"

    def load(
        self, path: Path, *, threads: int, options: Mapping[str, str] | None = None
    ) -> OpenVinoSession:
        """Compile on ``threads`` threads; ``options`` are OpenVINO properties."""
        return OpenVinoSession(_compiled(path, 1, threads, options or {}))

    def load_instances(
        self, path: Path, count: int, *, threads: int, options: Mapping[str, str] | None = None
    ) -> list[OpenVinoSession]:
        """Infer requests of one compiled model, each with a stream of ``threads`` threads."""
        compiled = _compiled(path, count, threads, options or {})
        return [OpenVinoSession(compiled) for _ in range(count)]


def _compiled(path: Path, streams: int, threads: int, options: Mapping[str, str]) -> Any:
    """The model, tuned for latency, with ``threads`` for each of ``streams``.

    Raises:
        IntegrityError: the file is no model that OpenVINO can read.
        BackendUnavailableError: OpenVINO fell back to another device.
    """
    properties = {
        "INFERENCE_NUM_THREADS": str(streams * threads),
        "NUM_STREAMS": str(streams),
        "PERFORMANCE_HINT": "LATENCY",
        # Pinned, every session of a process that runs one thread would run it on core 0.
        "ENABLE_CPU_PINNING": "NO",
        **options,
    }
    try:
        core = _library().Core()
        compiled = core.compile_model(core.read_model(str(path)), DEVICE, properties)
    except RuntimeError as error:
        raise IntegrityError(f"OpenVINO cannot load {path}: {error}") from error
    devices = list(compiled.get_property("EXECUTION_DEVICES"))
    if devices != [DEVICE]:
        raise BackendUnavailableError(
            f"{path}: OpenVINO took {', '.join(devices)} where {DEVICE} was asked for"
        )
    return compiled


def _spec(port: Any) -> TensorSpec:
    shape = tuple(axis.get_length() if axis.is_static else -1 for axis in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), port.get_element_type().to_dtype().name, shape)


def _told(node: Any) -> dict[str, str]:
    information = node.get_rt_info()
    keys = ("layerType", "runtimePrecision", "originalLayersNames")
    return {key: information[key].astype(str) for key in keys}


def _operation(name: str, told: Mapping[str, str]) -> Operation:
    kind, originals = told["layerType"], told["originalLayersNames"].split(",")
    return Operation(
        name=name,
        kind=kind,
        role=_role(kind, originals),
        precision=_PRECISIONS.get(told["runtimePrecision"], ""),
        device=DEVICE,
        fused=len(originals) > 1,
    )


def _role(kind: str, originals: Sequence[str]) -> Role:
    if kind in _PRODUCTS:
        return Role.PRODUCT
    if kind == "FakeQuantize":
        return Role.QUANTIZE
    undone = any(_DEQUANTIZATION in original for original in originals)
    return Role.DEQUANTIZE if undone else Role.OTHER


BACKEND: Final = OpenVinoBackend()
