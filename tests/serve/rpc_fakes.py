"""A server of calls alone, with methods of a test's own, and its callers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from edgewright.serve.rpc_call import RpcCall
from edgewright.serve.rpc_server import Method, RpcServer

if TYPE_CHECKING:
    from .conftest import LoopThread

UNARY, STREAM = "/unary/", "/stream/"


class Methods:
    """By the last part of a path. Those of ``UNARY`` are read first."""

    def __init__(self, methods: dict[str, Method]) -> None:
        self._methods = methods
        self.asked: list[str] = []  # paths, of calls that the polling thread has looked at

    def is_read_first(self, path: str) -> bool:
        self.asked.append(path)
        return path.startswith(UNARY)

    def find(self, call: RpcCall) -> Method | None:
        return self._methods.get(call.method.rpartition("/")[2])


class RunningRpc:
    """A started server and a channel to it."""

    def __init__(
        self, loop: LoopThread, methods: Methods, options: Sequence[tuple[str, Any]] = ()
    ) -> None:
        self.loop = loop
        self.methods = methods

        async def start() -> tuple[RpcServer, int]:
            server = RpcServer(methods, options)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            return server, port

        self.server, self.port = loop.run(start())
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{self.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )

    def call(self, name: str, message: bytes = b"", **given: Any) -> Any:
        """Of a unary method; its answer is its ``result``, and it is an error too."""
        return self.channel.unary_unary(UNARY + name).future(message, **{"timeout": 60, **given})

    def stream(self, name: str, messages: Iterable[bytes] = (), **given: Any) -> Any:
        method = self.channel.stream_stream(STREAM + name)
        return method(iter(messages), **{"timeout": 60, **given})

    def close(self) -> None:
        self.channel.close()
        self.loop.run(asyncio.wait_for(self.server.stop(None), 30))


class Told:
    """What a method of a test tells the test from the event loop."""

    def __init__(self) -> None:
        self.here = threading.Event()
        self.release = threading.Event()  # of a caller who is to go on
        self.said: list[Any] = []

    def say(self, what: Any) -> None:
        self.said.append(what)
        self.here.set()


def open_stream(release: threading.Event, *first: bytes) -> Iterator[bytes]:
    """These messages, and no end before ``release`` is set."""
    yield from first
    release.wait(60)


async def echo(call: RpcCall) -> bytes | None:
    return await call.read()


async def echo_all(call: RpcCall) -> None:
    while (message := await call.read()) is not None:
        await call.write(message)
