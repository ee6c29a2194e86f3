"""ONNX Runtime on the CPU, and what its CUDA twin shares with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from edgewright.backends import TensorSpec
from edgewright.backends.onnxruntime_placement import RECORD_ASSIGNMENTS, placement_of
from edgewright.backends.placement import Placement
from edgewright.errors import BackendUnavailableError, IntegrityError

CPU: Final = "CPUExecutionProvider"
_WEIGHTS_OUTSIDE: Final = "session.optimized_model_external_initializers_file_name"
_DTYPES: Final = {
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
}


def library(install: str = "edgewright[serve]") -> Any:
    """The module ``onnxruntime``.

    Raises:
        BackendUnavailableError: it is not installed; says to install the extra ``install``.
    """
    # From 1.32 on its import alone starts telemetry and writes an id into the home folder.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            f"ONNX Runtime is not installed; run `pip install '{install}'`"
        ) from error
    return onnxruntime


class OnnxRuntimeSession:
    """A model on one execution provider, which is asked for by name."""

    def __init__(
        self,
        path: Path,
        threads: int,
        options: Mapping[str, str],
        *,
        runtime: str = "onnxruntime",
        provider: str = CPU,
    ) -> None:
        self._path, self._threads, self._options = path, threads, options
        self._runtime, self._provider = runtime, provider
        self._session = self._open(self._session_options())
        self.inputs = tuple(_spec(each) for each in self._session.get_inputs())
        self.outputs = tuple(_spec(each) for each in self._session.get_outputs())
        self._first = [self.outputs[0].name]

    def run(
        self, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """One forward pass; every input by name. The outputs named or, without, the first."""
        names = list(outputs) or self._first
        return dict(zip(names, self._session.run(names, dict(arrays)), strict=True))

    def placement(self) -> Placement:
        """What runs, by loading the file once more."""
        return placement_of(self._runtime, self._path, self._open_writing)

    def _session_options(self) -> Any:
        options = library().SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors only: warnings are for the model's author
        # A server shares its cores with tokenisation and the network: idle threads must sleep.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for key, value in self._options.items():
            options.add_session_config_entry(key, value)
        return options

    def _open(self, options: Any) -> Any:
        """ONNX Runtime's own session.

        Raises:
            IntegrityError: the file is no model that ONNX Runtime can read.
            BackendUnavailableError: ONNX Runtime fell back to another provider.
        """
        try:  # enable_fallback: without it, Python retries on the CPU when the provider fails
            session = library().InferenceSession(
                str(self._path), options, providers=[self._provider], enable_fallback=0
            )
        except Exception as error:  # the runtime raises classes of its own, without a common base
            raise IntegrityError(f"ONNX Runtime cannot load {self._path}: {error}") from error
        if session.get_providers()[0] != self._provider:
            raise BackendUnavailableError(
                f"{self._path}: ONNX Runtime took {session.get_providers()[0]} where "
                f"{self._provider} was asked for; check that its libraries load here"
            )
        return session

    def _open_writing(self, optimised: Path) -> Any:
        options = self._session_options()
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry(_WEIGHTS_OUTSIDE, f"{optimised.name}.data")
        options.add_session_config_entry(RECORD_ASSIGNMENTS, "1")
        return self._open(options)


class OnnxRuntimeBackend:
    """Loads ONNX files with ONNX Runtime."""

    name = "onnxruntime"

    def runtime(self) -> str:
        """Library and version."""
        return f"onnxruntime {library().__version__}"

    def load(
        self, path: Path, *, threads: int, options: Mapping[str, str] | None = None
    ) -> OnnxRuntimeSession:
        """Load on ``threads`` intra-op threads; ``options`` are session configuration entries."""
        return OnnxRuntimeSession(path, threads, options or {})

    def load_instances(
        self, path: Path, count: int, *, threads: int, options: Mapping[str, str] | None = None
    ) -> list[OnnxRuntimeSession]:
        """Sessions that may run at once: one for all of them where it has no threads of its own.

        Such a session computes on the thread that calls it, and ONNX Runtime allows several.
        """
        loads = 1 if threads == 1 else count
        loaded = [self.load(path, threads=threads, options=options) for _ in range(loads)]
        return loaded * (count // loads)


def _spec(node: Any) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else -1 for axis in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)


BACKEND: Final = OnnxRuntimeBackend()
