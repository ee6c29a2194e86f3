"""ONNX Runtime on an NVIDIA GPU, where nothing runs on the CPU but arithmetic on shapes.

ONNX Runtime gives the CPU what CUDA has no kernel for, without a word. Here that is an error
(``session.disable_cpu_ep_fallback``). Sums and slices of shapes, which it puts there on purpose
because a kernel of the GPU waits for their result, are let pass; they are told from the rest by
the node assignments, which ONNX Runtime tells from 1.24 on.

Sessions that run at once share ONNX Runtime's own session and its weights. It takes a CUDA stream
for each run that goes on (``SessionState::AcquireDeviceStreamCollection``; without the option
``user_compute_stream``), so that one run copies while another computes. A run copies its inputs
from where numpy has them, by cudaMemcpyAsync on its stream, and waits for that (``utils.cc``,
``CopyInputsAcrossDevices``), so they are put into pinned memory here. IOBinding would add nothing:
``BindInput`` makes the same copy, on another stream than the run's, and a pinned OrtValue, which
only the newest versions make from Python, is copied by the same call (``gpu_data_transfer.cc``).
What comes out are a few scores a row, to which it makes no difference.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from edgewright.backends.cuda import INSTALL, check_not_lost, sleep_while_waiting, this_gpu
from edgewright.backends.cuda_memory import PinnedMemory
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
    """A model on the CUDA execution provider; ``run`` is called from one thread at a time."""

    def __init__(self, path: Path, threads: int, options: Mapping[str, str]) -> None:
        sleep_while_waiting()
        super().__init__(path, threads, options, runtime="onnxruntime-cuda", provider=CUDA)
        self._pin()

    def another(self) -> OnnxRuntimeCudaSession:
        """A session of the same weights, which may run at once with this one."""
        beside = copy.copy(self)
        beside._pin()
        return beside

    def run(
        self, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """One forward pass; every input by name. The outputs named or, without, the first.

        Raises:
            BackendUnavailableError: there is no pinned memory for the inputs.
            GpuLostError: a fault has made the GPU unusable to this process.
        """
        known = arrays.keys() & self._pinned.keys()
        pinned = {name: self._pinned[name].write(arrays[name]) for name in known}
        try:
            return super().run({**arrays, **pinned}, outputs)
        except Exception:  # the runtime raises classes of its own, without a common base
            check_not_lost()
            raise

    def _pin(self) -> None:
        with ExitStack() as held:
            self._pinned = {spec.name: PinnedMemory(held) for spec in self.inputs}
            weakref.finalize(self, held.pop_all().close)

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
        """Sessions of one of ONNX Runtime's: the weights lie on the GPU once."""
        first = self.load(path, threads=threads, options=options)
        return [first, *(first.another() for _ in range(count - 1))]


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
