"""The NVIDIA GPU, through cuda-python: which one it is, and calls whose every error is told.

The GPU is the first that the process sees; ``CUDA_VISIBLE_DEVICES`` chooses another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from edgewright.errors import BackendUnavailableError, GpuLostError

DEVICE: Final = 0
INSTALL: Final = "run `pip install 'edgewright[serve-gpu]'` on a host with an NVIDIA GPU"


# Of these the documentation of cudaError_t says: "the process must be terminated and relaunched".
LOST_AS_DOCUMENTED: Final = {
    "cudaErrorAssert", "cudaErrorContained", "cudaErrorExternalDevice",
    "cudaErrorHardwareStackError", "cudaErrorIllegalAddress", "cudaErrorIllegalInstruction",
    "cudaErrorInvalidAddressSpace", "cudaErrorInvalidPc", "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout", "cudaErrorMisalignedAddress", "cudaErrorMpsClientTerminated",
    "cudaErrorTensorMemoryLeak",
}  # fmt: skip
# Of these it only says what happened: the memory of the GPU, or its link to others, has failed.
# What runs on it goes on failing, and a restart lets the scheduler look for another GPU.
LOST_IN_HARDWARE: Final = {"cudaErrorECCUncorrectable", "cudaErrorNvlinkUncorrectable"}
LOST: Final = LOST_AS_DOCUMENTED | LOST_IN_HARDWARE


@dataclass(frozen=True)
class Gpu:
    """What code that was compiled for one GPU depends on."""

    name: str  # "NVIDIA H200"
    compute_capability: str  # "9.0"
    driver: str  # newest CUDA that the driver knows: "13.0"
    cuda: str  # of the CUDA runtime: "13.0"

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


def runtime() -> Any:
    """The CUDA runtime's bindings.

    Raises:
        BackendUnavailableError: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime as bindings
    except ImportError as error:
        raise BackendUnavailableError(f"cuda-python is not installed; {INSTALL}") from error
    return bindings


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime; its value, or None where it has none.

    Raises:
        BackendUnavailableError: it failed; says which, and what CUDA says of it.
        GpuLostError: so that no later call of this process can succeed.
    """
    bindings = runtime()
    try:
        status, *values = getattr(bindings, name)(*arguments)
    except RuntimeError as error:  # cuda-python 12, where there is no driver to call
        raise BackendUnavailableError(f"CUDA: {name} failed: {error}") from error
    if status != bindings.cudaError_t.cudaSuccess:
        told = f"CUDA: {name} failed with {_words(bindings, status)}"
        if status.name in LOST:
            raise GpuLostError(f"{told}; this process cannot use the GPU any more: start it again")
        raise BackendUnavailableError(told)
    return values[0] if values else None


def release(function: str, handle: Any) -> Callable[[], object]:
    """What calls ``function(handle)`` to give something back.

    What CUDA answers is nobody's concern any more: at the process's end it may have gone first.
    """
    return partial(getattr(runtime(), function), handle)


def sleep_while_waiting() -> None:
    """Let threads of this process that wait for the GPU give up their core meanwhile.

    By default they spin, on cores that decode and tokenise the next batch. The flag governs
    cudaStreamSynchronize, in which every cuda-python since 12.8 releases the GIL; before 12.9.1
    cudaEventSynchronize, for which cudaEventBlockingSync would do the same, holds it.

    Raises:
        BackendUnavailableError, GpuLostError: as ``call``.
    """
    call("cudaSetDeviceFlags", runtime().cudaDeviceScheduleBlockingSync)


def check_not_lost() -> None:
    """Wait for all that the GPU was given, to learn whether this process can still use it.

    Raises:
        GpuLostError: it cannot.
    """
    with contextlib.suppress(BackendUnavailableError):
        call("cudaDeviceSynchronize")


def this_gpu() -> Gpu:
    """The GPU that is used.

    Raises:
        BackendUnavailableError: there is none, or no driver for it.
    """
    try:
        count = call("cudaGetDeviceCount")
    except BackendUnavailableError as error:
        raise BackendUnavailableError(f"no usable NVIDIA GPU here ({error}); {INSTALL}") from error
    if not count:
        raise BackendUnavailableError(f"this process sees no NVIDIA GPU; {INSTALL}")
    properties = call("cudaGetDeviceProperties", DEVICE)
    return Gpu(
        name=_text(properties.name),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=_version(call("cudaDriverGetVersion")),
        cuda=_version(call("cudaRuntimeGetVersion")),
    )


def _words(bindings: Any, status: Any) -> str:
    """As "cudaErrorNoDevice: no CUDA-capable device is detected"."""
    _, name = bindings.cudaGetErrorName(status)
    _, meaning = bindings.cudaGetErrorString(status)
    return f"{_text(name)}: {_text(meaning)}"


def _version(number: int) -> str:
    """13020 is 13.2."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _text(value: bytes | str) -> str:
    return value.decode().rstrip("\0") if isinstance(value, bytes) else value
