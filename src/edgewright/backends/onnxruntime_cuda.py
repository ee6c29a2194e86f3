"""ONNX Runtime on an NVIDIA GPU, where nothing runs on the CPU but arithmetic on shapes.

ONNX Runtime gives the CPU what CUDA has no kernel for, without a word. Here that is an error
(``session.disable_cpu_ep_fallback``). Sums and slices of shapes, which it puts there on purpose
because a kernel of the GPU waits for their result, are let pass; they are told from the rest by
the node assignments, which ONNX Runtime tells from 1.24 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgewright.backends.cuda import INSTALL, this_gpu
from edgewright.backends.onnxruntime import CPU, OnnxRuntimeSession, library
from edgewright.backends.onnxruntime_placement import RECORD_ASSIGNMENTS, assignments
from edgewright.errors import BackendUnavailableError, IntegrityError

CUDA: Final = "CUDAExecutionProvider"
_STRICT: Final = "session.disable_cpu_ep_fallback"
_REFUSED: Final = "fallback to CPU EP has been explicitly disabled"
# What a graph does with the shapes of its tensors: a few integers each, never a row's values.
SHAPE_ARITHMETIC: Final = {
    "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Mul", "Range",
    "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where",
}  # fmt: skip


class OnnxRuntimeCudaSession(OnnxRuntimeSession):
    """A model on the CUDA execution provider."""

    def __init__(self, path: Path, threads: int, options: Mapping[str, str]) -> None:
        super().__init__(path, threads, options, runtime="onnxruntime-cuda", provider=CUDA)

    def _session_options(self) -> Any:
        options = super()._session_options()
        options.add_session_config_entry(_STRICT, "1")
        return options

    def _open(self, options: Any) -> Any:
        try:
            return super()._open(options)
        except IntegrityError as error:
            if _REFUSED not in str(error):
                raise
            strict = error
        options.add_session_config_entry(_STRICT, "0")
        options.add_session_config_entry(RECORD_ASSIGNMENTS, "1")
        session = super()._open(options)
        _refuse_fallback(self._path, assignments(session), strict)
        return session


class OnnxRuntimeCudaBackend:
    """Loads ONNX files with ONNX Runtime's CUDA build."""

    name = "onnxruntime-cuda"

    def runtime(self) -> str:
        """Library, version and GPU: kernels are chosen for one GPU.

        Raises:
            BackendUnavailableError: ONNX Runtime is missing or the CPU build, or there is no GPU.
        """
        return f"onnxruntime-cuda {_cuda_build().__version__} on {this_gpu()}"

    def load(
        self, path: Path, *, threads: int, options: Mapping[str, str] | None = None
    ) -> OnnxRuntimeCudaSession:
        """Load on the first GPU; ``options`` are session configuration entries.

        Raises:
            BackendUnavailableError: also where a node that works on rows would run on the CPU.
        """
        _cuda_build()
        return OnnxRuntimeCudaSession(path, threads, options or {})

    def load_instances(
        self, path: Path, count: int, *, threads: int, options: Mapping[str, str] | None = None
    ) -> list[OnnxRuntimeCudaSession]:
        """Sessions with memory of their own on the GPU, weights included."""
        return [self.load(path, threads=threads, options=options) for _ in range(count)]


def _cuda_build() -> Any:
    onnxruntime = library("edgewright[serve-gpu]")
    if CUDA not in onnxruntime.get_available_providers():
        raise BackendUnavailableError(
            "ONNX Runtime is installed without CUDA; in a fresh environment, for the two builds "
            f"own the same folder, {INSTALL}"
        )
    return onnxruntime


def _refuse_fallback(path: Path, assigned: Mapping[str, Any], strict: IntegrityError) -> None:
    if not assigned:
        raise BackendUnavailableError(
            f"{strict}; which nodes, ONNX Runtime tells from 1.24 on: install that"
        ) from strict
    fallen = [node for node in assigned.get(CPU, ()) if node.op_type not in SHAPE_ARITHMETIC]
    if fallen:
        named = ", ".join(f"{node.op_type} {node.name}".strip() for node in fallen)
        raise BackendUnavailableError(
            f"{path}: CUDA has no kernel for {named}, which would run on the CPU unasked; "
            "use the onnxruntime backend, or TensorRT"
        ) from strict


BACKEND: Final = OnnxRuntimeCudaBackend()
