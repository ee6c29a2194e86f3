"""Memory that the GPU reads: pinned on the host's side, and the GPU's own, on one stream.

Pinned memory is what asynchronous copies need: from ordinary memory CUDA first copies to a pinned
buffer of its own, and the call waits.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.backends.cuda import call, release_with, runtime


class Stream:
    """Work in the order in which it was given, beside Python."""

    def __init__(self) -> None:
        self._stream = call("cudaStreamCreate")
        release_with(self, "cudaStreamDestroy", self._stream)

    @property
    def handle(self) -> int:
        """As TensorRT takes it."""
        return int(self._stream)

    def to_device(self, buffer: Buffer, size: int) -> None:
        """Copy the first ``size`` bytes of a buffer to the GPU."""
        kind = runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
        call("cudaMemcpyAsync", buffer.device, buffer.host, size, kind, self._stream)

    def to_host(self, buffer: Buffer, size: int) -> None:
        """Copy the first ``size`` bytes of a buffer from the GPU."""
        kind = runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("cudaMemcpyAsync", buffer.host, buffer.device, size, kind, self._stream)

    def wait(self) -> None:
        """Until everything given so far is done."""
        call("cudaStreamSynchronize", self._stream)


class Buffer:
    """One tensor's bytes on both sides; it only grows, so that a warm server allocates nothing."""

    def __init__(self) -> None:
        self.size = 0  # bytes
        self.host = 0  # address
        self.device = 0  # address
        self._release: list[weakref.finalize[Any, Any]] = []

    def reserve(self, size: int) -> None:
        """Have room for ``size`` bytes; what lay there is lost where it grows."""
        size = max(size, 1)  # TensorRT wants an address of empty tensors too
        if size <= self.size:
            return
        self.release()
        self.device = _allocated(self, "cudaMalloc", "cudaFree", size)
        self.host = _allocated(self, "cudaMallocHost", "cudaFreeHost", size)
        self.size = size

    def write(self, array: NDArray[Any]) -> None:
        """Put an array on the host's side."""
        self.reserve(array.nbytes)
        self.view(array.shape, array.dtype)[...] = array

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """The host's side as an array; it changes with the buffer."""
        count = int(np.prod(shape, dtype=np.int64))
        memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(self.host)
        return np.ndarray(shape, dtype, buffer=memoryview(memory))

    def release(self) -> None:
        """Give the memory back now; it also goes with the object."""
        for each in self._release:
            each()
        self._release.clear()
        self.size = self.host = self.device = 0


def _allocated(buffer: Buffer, allocate: str, free: str, size: int) -> int:
    address = int(call(allocate, size))
    buffer._release.append(release_with(buffer, free, address))
    return address
