"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from edgewright.backends import TensorSpec
from edgewright.errors import BackendUnavailableError, IntegrityError

_DTYPES: Final = {
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
}


def _library() -> Any:
    # From 1.32 on its import alone starts telemetry and writes an id into the home folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            "ONNX Runtime is not installed; run `pip install 'edgewright[serve]'`"
        ) from error
    return onnxruntime


class OnnxRuntimeSession:
    """A model on the CPU execution provider, which is asked for by name."""

    def __init__(self, path: Path, threads: int, options: Mapping[str, str]) -> None:
        library = _library()
        session_options = library.SessionOptions()
        session_options.intra_op_num_threads = threads
        session_options.inter_op_num_threads = 1
        session_options.log_severity_level = 3  # errors only: warnings are for the model's author
        # A server shares its cores with tokenisation and the network: idle threads must sleep.
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in options.items():
            session_options.add_session_config_entry(key, value)
        try:
            self._session = library.InferenceSession(
                str(path), session_options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime raises classes of its own, without a common base
            raise IntegrityError(f"ONNX Runtime cannot load {path}: {error}") from error
        self.inputs = tuple(_spec(each) for each in self._session.get_inputs())
        self.outputs = tuple(_spec(each) for each in self._session.get_outputs())
        self._output_names = [each.name for each in self.outputs]

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One forward pass; every input by name, every output by name."""
        outputs = self._session.run(self._output_names, dict(arrays))
        return dict(zip(self._output_names, outputs, strict=True))


class OnnxRuntimeBackend:
    """Loads ONNX files with ONNX Runtime."""

    name = "onnxruntime"

    def runtime(self) -> str:
        """Library and version."""
        return f"onnxruntime {_library().__version__}"

    def load(
        self, path: Path, *, threads: int, options: Mapping[str, str] | None = None
    ) -> OnnxRuntimeSession:
        """Load on ``threads`` intra-op threads; ``options`` are session configuration entries."""
        return OnnxRuntimeSession(path, threads, options or {})


def _spec(node: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else -1 for axis in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)


BACKEND: Final = OnnxRuntimeBackend()
