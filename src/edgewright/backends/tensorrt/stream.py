"""A stream of work for the GPU, and the buffers that it copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from edgewright.backends.cuda import call, release, runtime
from edgewright.backends.cuda_memory import DeviceMemory, PinnedMemory


class Buffer:
    """One tensor's bytes on both sides."""

    def __init__(self, held: ExitStack) -> None:
        self.device = DeviceMemory(held)
        self.host = PinnedMemory(held)

    def reserve(self, size: int) -> None:
        """Have room for ``size`` bytes on both sides; what lay there is lost where it grows."""
        self.device.reserve(size)
        self.host.reserve(size)


class Stream:
    """Work in the order in which it was given, beside Python and beside other streams."""

    def __init__(self, held: ExitStack) -> None:
        """``held`` destroys it when it is closed."""
        # The other kind waits for what anybody gives the default stream, and that for it.
        self._stream = call("cudaStreamCreateWithFlags", runtime().cudaStreamNonBlocking)
        held.callback(release("cudaStreamDestroy", self._stream))

    @property
    def handle(self) -> int:
        """As TensorRT takes it."""
        return int(self._stream)

    def to_device(self, buffer: Buffer, size: int) -> None:
        """Enqueue a copy of a buffer's first ``size`` bytes to the GPU."""
        kind = runtime().cudaMemcpyKind.cudaMemcpyHostToDevice
        device, host = buffer.device.address, buffer.host.address
        call("cudaMemcpyAsync", device, host, size, kind, self._stream)

    def to_host(self, buffer: Buffer, size: int) -> None:
        """Enqueue a copy of a buffer's first ``size`` bytes from the GPU."""
        kind = runtime().cudaMemcpyKind.cudaMemcpyDeviceToHost
        device, host = buffer.device.address, buffer.host.address
        call("cudaMemcpyAsync", host, device, size, kind, self._stream)

    @contextmanager
    def done(self) -> Iterator[None]:
        """Enqueue work in the body; on the way out all of it is done, also where the body failed.

        For what was enqueued before it failed still reads and writes the buffers. The wait is
        outside the GIL.

        Raises:
            BackendUnavailableError, GpuLostError: CUDA tells of a fault of the work itself.
        """
        try:
            yield
        finally:
            call("cudaStreamSynchronize", self._stream)
