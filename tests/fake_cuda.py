"""A CUDA runtime without a GPU: its memory is the host's, its streams do their work when waited for.

Work that is given to a stream happens when that stream is waited for and not before, so that code
which does not wait reads nonsense. What a GPU would only answer with wrong numbers now and then is
``MisuseError`` here: a copy from memory that is not pinned, or that changes before it is copied, or that
is freed; a stream that is destroyed with work on it. ``log`` keeps what was called, in order.
"""

from __future__ import annotations

import ctypes
import enum
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

NONSENSE = 0xA5


class MisuseError(AssertionError):
    """CUDA was used as its documentation forbids."""


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorECCUncorrectable = 214
    cudaErrorIllegalAddress = 700


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


@dataclass(frozen=True)
class Block:
    """What was allocated in one call; ``content`` keeps it alive."""

    kind: str  # "device" or "pinned"
    content: Any

    @property
    def size(self) -> int:
        return len(self.content)


@dataclass(frozen=True)
class Work:
    """Something a stream has to do, and the addresses that it reads or writes."""

    do: Callable[[], None]
    touches: frozenset[int] = frozenset()
    ended: Callable[[], None] = lambda: None  # called also where a fault comes before it


@dataclass
class FakeCuda:
    """One GPU's memory and streams; ``refuse`` names functions that fail."""

    cudaDeviceScheduleBlockingSync = 4
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    name: str = "NVIDIA Fake"
    capability: tuple[int, int] = (9, 0)
    devices: int = 1
    driver: int = 13020
    refuse: set[str] = field(default_factory=set)
    fault: cudaError_t | None = None  # happens in the next work, and in all that is called then
    memory: dict[int, Block] = field(default_factory=dict)  # by address
    streams: dict[int, list[Work]] = field(default_factory=dict)
    flags: int = 0
    log: list[tuple[Any, ...]] = field(default_factory=list)
    _faulted: bool = False
    _handles: Iterator[int] = field(default_factory=lambda: count(1))

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take the place of cuda-python."""
        cuda, bindings, runtime = (
            ModuleType(name) for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime")
        )
        cuda.bindings = bindings  # type: ignore[attr-defined]
        bindings.runtime = runtime  # type: ignore[attr-defined]
        for name in names():
            value = getattr(self, name)
            setattr(runtime, name, self._failing(name) if callable(value) else value)
        runtime.cudaError_t = cudaError_t  # type: ignore[attr-defined]
        runtime.cudaMemcpyKind = cudaMemcpyKind  # type: ignore[attr-defined]
        for module in (cuda, bindings, runtime):
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def do(self, stream: int, work: Callable[[], None], *touches: int, **ended: Any) -> None:
        """Give work to a stream."""
        self.streams[stream].append(Work(work, frozenset(touches), **ended))

    def block(self, address: int, kind: str, size: int = 0) -> Block:
        """What lies at an address, which must be of a kind and hold ``size`` bytes."""
        found = self.memory.get(address)
        if found is None or found.kind != kind or found.size < size:
            raise MisuseError(f"{size} bytes at {address:#x} are not {kind} memory: {found}")
        return found

    def _failing(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if name in self.refuse:
                if name == "cudaStreamSynchronize":  # what it tells of has ended all the same
                    self._end(self.streams[arguments[0]])
                return (cudaError_t.cudaErrorMemoryAllocation, None)
            if self._faulted and not name.startswith("cudaGetError"):
                return (self.fault, None)
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

    def cudaSetDeviceFlags(self, flags: int) -> tuple[Any, ...]:
        self.flags = flags
        return (cudaError_t.cudaSuccess,)

    def cudaMalloc(self, size: int) -> int:
        return self._allocate(size, "device")

    def cudaHostAlloc(self, size: int, flags: int) -> int:
        assert flags == self.cudaHostAllocDefault
        return self._allocate(size, "pinned")

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:
        return self._free(devPtr, "device")

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        return self._free(ptr, "pinned")

    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        assert flags == self.cudaStreamNonBlocking
        handle = next(self._handles)
        self.streams[handle] = []
        self.log.append(("create", "stream", handle))
        return handle

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self.log.append(("destroy", "stream", stream))
        if self.streams.pop(stream):
            raise MisuseError(f"stream {stream} was destroyed with work on it")
        return (cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int
    ) -> tuple[Any, ...]:
        into, out_of = ("device", "pinned")
        if kind == cudaMemcpyKind.cudaMemcpyDeviceToHost:
            into, out_of = out_of, into
        self.block(dst, into, count)
        self.block(src, out_of, count)
        before = None
        if out_of == "pinned":
            before = ctypes.string_at(src, count)
        else:
            ctypes.memset(dst, NONSENSE, count)
        self.log.append(("copy in" if before is not None else "copy out", stream))

        def copy() -> None:
            if before is not None and ctypes.string_at(src, count) != before:
                raise MisuseError(f"the {count} bytes at {src:#x} changed before they were copied")
            ctypes.memmove(dst, src, count)

        self.do(stream, copy, dst, src)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        self.log.append(("wait", stream))
        work = self.streams[stream]
        while work:
            if self.fault is not None:
                self._faulted = True
                self._end(work)
                return (self.fault,)
            work[0].do()
            work.pop(0).ended()
        return (cudaError_t.cudaSuccess,)

    def _end(self, work: list[Work]) -> None:
        while work:
            work.pop(0).ended()

    def cudaDeviceSynchronize(self) -> tuple[Any, ...]:
        for stream in list(self.streams):
            status = self.cudaStreamSynchronize(stream)
            if status[0] != cudaError_t.cudaSuccess:
                return status
        if self.fault is not None:
            self._faulted = True
            return (self.fault,)
        return (cudaError_t.cudaSuccess,)

    def _allocate(self, size: int, kind: str) -> int:
        content = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(content)
        self.memory[address] = Block(kind, content)
        self.log.append(("create", kind, address))
        return address

    def _free(self, address: int, kind: str) -> tuple[Any, ...]:
        self.block(address, kind)
        self.log.append(("destroy", kind, address))
        if any(address in each.touches for work in self.streams.values() for each in work):
            raise MisuseError(f"{kind} memory was freed that a stream works on")
        del self.memory[address]
        return (cudaError_t.cudaSuccess,)


def names() -> list[str]:
    """What the stand-in has of the bindings: functions and constants."""
    return [name for name in dir(FakeCuda) if name.startswith("cuda")]


def functions() -> list[str]:
    """The functions among ``names``."""
    return [name for name in names() if callable(getattr(FakeCuda, name))]
