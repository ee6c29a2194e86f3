"""A CUDA runtime without a GPU: its memory is the host's, its streams do their work when waited for.

Work that is given to a stream happens in ``cudaStreamSynchronize`` and not before, so that code
which does not wait gets zeros, and code that reuses a buffer too early gets the wrong numbers.
"""

from __future__ import annotations

import ctypes
import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


@dataclass
class FakeCuda:
    """One GPU's memory and streams; ``refuse`` names functions that fail."""

    name: str = "NVIDIA Fake"
    capability: tuple[int, int] = (9, 0)
    devices: int = 1
    driver: int = 13020
    refuse: set[str] = field(default_factory=set)
    memory: dict[int, Any] = field(default_factory=dict)  # address -> what keeps it alive
    kinds: dict[int, str] = field(default_factory=dict)  # address -> "device" or "host"
    streams: dict[int, list[Callable[[], None]]] = field(default_factory=dict)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of cuda-python."""
        cuda, bindings, runtime = (
            ModuleType(name) for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime")
        )
        cuda.bindings = bindings  # type: ignore[attr-defined]
        bindings.runtime = runtime  # type: ignore[attr-defined]
        for name in (each for each in dir(self) if each.startswith("cuda")):
            setattr(runtime, name, self._failing(name))
        runtime.cudaError_t = cudaError_t  # type: ignore[attr-defined]
        runtime.cudaMemcpyKind = cudaMemcpyKind  # type: ignore[attr-defined]
        for module in (cuda, bindings, runtime):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def _failing(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if name in self.refuse:
                return (cudaError_t.cudaErrorMemoryAllocation, None)
            value = getattr(self, name)(*arguments)
            return value if isinstance(value, tuple) else (cudaError_t.cudaSuccess, value)

        return call

    def cudaGetDeviceCount(self) -> Any:
        if not self.devices:
            return (cudaError_t.cudaErrorNoDevice, None)
        return self.devices

    def cudaGetDeviceProperties(self, device: int) -> Any:
        major, minor = self.capability
        return SimpleNamespace(name=self.name.encode(), major=major, minor=minor)

    def cudaDriverGetVersion(self) -> int:
        return self.driver

    def cudaRuntimeGetVersion(self) -> int:
        return 13000

    def cudaGetErrorName(self, error: cudaError_t) -> bytes:
        return error.name.encode()

    def cudaGetErrorString(self, error: cudaError_t) -> bytes:
        return b"what CUDA says of it"

    def cudaMalloc(self, size: int) -> int:
        return self._allocate(size, "device")

    def cudaMallocHost(self, size: int) -> int:
        return self._allocate(size, "host")

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        return self._free(devPtr, "device")

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        return self._free(ptr, "host")

    def cudaStreamCreate(self) -> int:
        handle = len(self.streams) + 1
        self.streams[handle] = []
        return handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        del self.streams[stream]
        return (cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int
    ) -> tuple[Any, ...]:
        sides = (
            ("device", "host")
            if kind == cudaMemcpyKind.cudaMemcpyHostToDevice
            else ("host", "device")
        )
        assert (self.kinds[dst], self.kinds[src]) == sides
        self.streams[stream].append(lambda: ctypes.memmove(dst, src, count) and None)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        while self.streams[stream]:
            self.streams[stream].pop(0)()
        return (cudaError_t.cudaSuccess,)

    def _allocate(self, size: int, kind: str) -> int:
        block = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(block)
        self.memory[address], self.kinds[address] = block, kind
        return address

    def _free(self, address: int, kind: str) -> tuple[Any, ...]:
        assert self.kinds.pop(address) == kind
        del self.memory[address]
        return (cudaError_t.cudaSuccess,)
