"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from edgewright.backends import TensorSpec
from edgewright.errors import BackendUnavailableError, IntegrityError


def _library() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailableError(
            "OpenVINO is not installed; run `pip install 'edgewright[openvino]'`"
        ) from error
    return openvino


class OpenVinoSession:
    """A model compiled for the CPU, tuned for latency."""

    def __init__(self, path: Path, threads: int, options: Mapping[str, str]) -> None:
        library = _library()
        properties = {
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
            "PERFORMANCE_HINT": "LATENCY",
            **options,
        }
        try:
            core = library.Core()
            compiled = core.compile_model(core.read_model(str(path)), "CPU", properties)
        except RuntimeError as error:
            raise IntegrityError(f"OpenVINO cannot load {path}: {error}") from error
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self._request = compiled.create_infer_request()

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One forward pass; every input by name, every output by name."""
        results = self._request.infer(dict(arrays), share_inputs=True)
        return {port.get_any_name(): value.copy() for port, value in results.items()}


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
        return OpenVinoSession(path, threads, options or {})


def _spec(port: Any) -> TensorSpec:
    shape = tuple(axis.get_length() if axis.is_static else -1 for axis in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), port.get_element_type().to_dtype().name, shape)


BACKEND: Final = OpenVinoBackend()
