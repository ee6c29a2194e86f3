"""Memory that the GPU reads: pinned on the host's side, and the GPU's own.

Pinned memory is what asynchronous copies need: from ordinary memory CUDA first copies to a pinned
buffer of its own, and the call waits.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edgewright.backends.cuda import call, release, runtime


class _Memory:
    """A block that only grows, so that a warm server allocates nothing.

    To allocate and to free makes CUDA wait for all of the GPU's work, that of others too. So it
    grows to powers of two, a few times in its life.
    """

    _free: ClassVar[str]

    def __init__(self, held: ExitStack) -> None:
        """``held`` gives it back when it is closed."""
        self.size = 0  # bytes
        self.address = 0
        self._release: Callable[[], object] | None = None
        held.callback(self.release)

    def reserve(self, size: int) -> None:
        """Have room for ``size`` bytes; what lay there is lost where it grows.

        Raises:
            BackendUnavailableError: there is no such room; then there is none at all.
        """
        if size <= self.size and self.address:  # TensorRT wants an address of empty tensors too
            return
        self.release()
        rounded = 1 << max(size - 1, 0).bit_length()
        self.address = int(self._allocate(rounded))
        self.size = rounded
        self._release = release(self._free, self.address)

    def release(self) -> None:
        """Give the memory back now."""
        if self._release is not None:
            self._release()
        self._release, self.size, self.address = None, 0, 0

    def _allocate(self, size: int) -> Any:
        raise NotImplementedError


class DeviceMemory(_Memory):
    """The GPU's own."""

    _free = "cudaFree"

    def _allocate(self, size: int) -> Any:
        return call("cudaMalloc", size)


class PinnedMemory(_Memory):
    """The host's, at a place from which it does not move."""

    _free = "cudaFreeHost"

    def _allocate(self, size: int) -> Any:
        # cudaMallocHost is the same, but cuda-python before 12.9.1 holds the GIL in it.
        return call("cudaHostAlloc", size, runtime().cudaHostAllocDefault)

    def write(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array, copied here, as it lies here."""
        self.reserve(array.nbytes)
        copied = self.view(array.shape, array.dtype)
        copied[...] = array
        return copied

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """What lies here as an array; it changes with the memory, and must not outlive it."""
        count = int(np.prod(shape, dtype=np.int64))
        memory = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(self.address)
        return np.ndarray(shape, dtype, buffer=memoryview(memory))
