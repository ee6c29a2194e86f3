"""A server of calls: what it takes, in what bounds, and how it stops."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import trustme

from edgewright.serve import rpc_server
from edgewright.serve.rpc_call import RpcCall
from edgewright.serve.rpc_server import MOST_AHEAD, Method, RpcServer

from .conftest import Late, LoopThread, until
from .raw_http2 import (
    ACK,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    head_of,
)
from .rpc_fakes import STREAM, UNARY, Methods, RunningRpc, Told, echo

Code = grpc.StatusCode
Serve = Callable[..., RunningRpc]
HELLO = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)
CANCEL = struct.pack(">I", 8)
MESSAGE = b"\0\0\0\0\x05hello"


class Silent:
    """Somebody with calls over one connection of which nothing but the headers comes."""

    def __init__(self, port: int, path: str, calls: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.streams = range(1, 2 * calls, 2)
        head = head_of(path)
        self._send(*(frame(HEADERS, END_HEADERS, each, head) for each in self.streams), hello=HELLO)

    def say(self) -> None:
        """The message of each call."""
        self._send(*(frame(0, END_STREAM, each, MESSAGE) for each in self.streams))

    def reset(self) -> None:
        """End each call."""
        self._send(*(frame(RST_STREAM, 0, each, CANCEL) for each in self.streams))

    def _send(self, *frames: bytes, hello: bytes = b"") -> None:
        self.socket.sendall(hello + b"".join(frames))

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def hangs(told: Told) -> Method:
    async def hang(_call: RpcCall) -> None:
        told.here.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.said.append("cancelled")
            raise

    return hang


def waits(told: Told) -> Method:
    """Until it is released, however often it is cancelled."""

    async def wait(_call: RpcCall) -> bytes:
        told.here.set()
        while not told.release.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        told.said.append("done")
        return b"answer"

    return wait


# --- what it answers ---


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_method_that_is_none_is_named(serve: Serve, path: str) -> None:
    call = serve().channel.unary_unary(path + "guess").future(b"", timeout=60)
    assert call.code() is Code.UNIMPLEMENTED
    assert call.details() == f"there is no method {path}guess"


def test_of_a_path_that_is_long_its_begin_is_told(serve: Serve) -> None:
    """All of it gRPC's clients may not take, in a status, and say then that they are overloaded."""
    call = serve().channel.unary_unary(UNARY + "é" * 3000).future(b"", timeout=60)
    assert call.code() is Code.UNIMPLEMENTED
    assert call.details().startswith(f"there is no method {UNARY}é")


def test_what_a_method_lets_through_is_told_to_the_log_alone(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_call: RpcCall) -> bytes:
        raise ValueError("a secret")

    running = serve(fail=fail, echo=echo)
    with caplog.at_level(logging.ERROR):
        call = running.call("fail")
        assert call.code() is Code.INTERNAL
    assert "secret" not in call.details()
    assert "a secret" in caplog.text
    assert running.call("echo", b"x").result() == b"x"


def test_methods_that_cannot_find_end_one_call(serve: Serve) -> None:
    running = serve(echo=echo)
    find = running.methods.find
    running.methods.find = lambda _call: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    assert running.call("echo").code() is Code.INTERNAL
    running.methods.find = find  # type: ignore[method-assign]
    assert running.call("echo", b"x").result() == b"x"


def test_a_method_that_ends_itself_is_cancelled(serve: Serve) -> None:
    async def end(_call: RpcCall) -> None:
        raise asyncio.CancelledError

    assert serve(end=end).call("end").code() is Code.CANCELLED


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("secure", [False, True])
def test_it_listens_on_any_address_with_tls_or_without(
    loop: LoopThread, host: str, secure: bool
) -> None:
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1", "::1")
    chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
    identity = grpc.ssl_server_credentials([(issued.private_key_pem.bytes(), chain)])

    async def start() -> tuple[RpcServer, int]:
        server = RpcServer(Methods({"echo": echo}))
        address = f"{host}:0"
        plain = server.add_insecure_port
        port = server.add_secure_port(address, identity) if secure else plain(address)
        server.start()
        return server, port

    server, port = loop.run(start())
    target = f"{host}:{port}"
    roots = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
    made = grpc.secure_channel(target, roots) if secure else grpc.insecure_channel(target)
    with made as channel:
        assert channel.unary_unary(UNARY + "echo")(b"x", timeout=60) == b"x"
    loop.run(server.stop(None))


def test_a_port_that_is_taken_is_none(loop: LoopThread, serve: Serve) -> None:
    running = serve()

    async def add() -> int:
        server = RpcServer(Methods({}), [("grpc.so_reuseport", 0)])
        try:
            return server.add_insecure_port(f"127.0.0.1:{running.port}")
        except RuntimeError:  # of newer gRPC
            return 0
        finally:
            await server.stop(None)

    assert loop.run(add()) == 0


# --- in what bounds ---


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_loop_that_is_late_has_few_calls_ahead_of_it(serve: Serve, path: str) -> None:
    """Whether their messages come or not; all are answered once it is there."""
    answered = []

    async def answer(call: RpcCall) -> bytes | None:
        answered.append(await call.read())
        return b""

    running = serve(answer=answer)
    calls = 3 * MOST_AHEAD
    with Silent(running.port, path + "answer", calls) as silent:
        with Late(running.loop):
            silent.say()
            until(lambda: len(running.methods.asked) >= rpc_server._AHEAD)
            with pytest.raises(AssertionError):
                until(lambda: len(running.methods.asked) > MOST_AHEAD, seconds=0.5)
        until(lambda: len(answered) == calls)
    assert set(answered) == {b"hello"}


def test_callers_who_say_nothing_hold_up_nobody(serve: Serve) -> None:
    """Nor do those who send have to be read after they have begun, which costs more."""
    read_first = Counter[bool]()

    async def answer(call: RpcCall) -> bytes | None:
        read_first[call.read_bytes > 0] += 1
        return await call.read()

    running = serve(answer=answer)
    calls = 2 * MOST_AHEAD
    with Silent(running.port, UNARY + "answer", calls) as silent:
        until(lambda: len(running.server._tasks) == calls - rpc_server._UNREAD)
        for _ in range(calls):
            assert running.call("answer", b"x").result() == b"x"
        assert read_first[True] == calls
        silent.say()
        until(lambda: read_first.total() == 2 * calls and not running.server._tasks)
    assert not running.server._unread


def test_a_loop_that_has_nothing_to_do_asks_for_calls_all_the_same(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was late as they came: what is owed for calls without a message is asked for."""
    monkeypatch.setattr(rpc_server, "_AHEAD", 0)
    running = serve(echo=echo)
    with Silent(running.port, UNARY + "echo", 2 * rpc_server._ASKED):
        assert running.call("echo", b"x").result() == b"x"


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_calls_that_are_reset_leave_nothing(serve: Serve, path: str) -> None:
    told = Told()
    running = serve(hang=hangs(told))
    gc.collect()
    gc.disable()
    try:
        with Silent(running.port, path + "hang", 30) as silent:
            silent.say()
            until(lambda: len(running.server._tasks) == 30)
            silent.reset()
            until(no_call_is_left)
        # A loop that is late cancels them before they have begun.
        with Late(running.loop), Silent(running.port, path + "hang", 30) as silent:
            silent.say()
            until(lambda: len(running.methods.asked) == 60)
            silent.reset()
            until(lambda: len(running.server._todo) == 60)
        until(no_call_is_left)
    finally:
        gc.enable()


def no_call_is_left() -> bool:
    calls = (each for each in gc.get_objects() if type(each) is RpcCall)
    return not any(each.method.endswith("/hang") for each in calls)


def test_an_event_that_is_lost_is_noticed_and_calls_in_flight_are_finished(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    told, left = Told(), Told()
    running = serve(wait=waits(told), hang=hangs(left))
    waiting, hanging = running.call("wait"), running.call("hang")
    assert told.here.wait(60)
    assert left.here.wait(60)
    ended = noticed(running)
    running.methods.is_read_first = lambda _path: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    assert not ended.done()
    with caplog.at_level(logging.CRITICAL):
        lost = running.call("wait")
        ended.result(60)
    assert "what came from gRPC's core was lost" in caplog.text
    hanging.cancel()
    until(lambda: left.said == ["cancelled"])
    told.release.set()
    assert waiting.result() == b"answer"
    stop(running, None).result(30)
    assert not running.server._thread.is_alive()
    assert lost.code() is not Code.OK


def test_a_polling_thread_that_dies_is_noticed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(rpc_server.core.CompletionQueue):  # type: ignore[misc,name-defined]
        fails = False

        def poll(self, deadline: float | None = None) -> Any:
            event = super().poll(deadline)
            if self.fails:
                raise MemoryError
            return event

    monkeypatch.setattr(rpc_server.core, "CompletionQueue", Failing)
    running = serve(echo=echo)
    ended = noticed(running)
    assert not ended.done()
    running.server._queue.fails = True
    with caplog.at_level(logging.CRITICAL):
        call = running.call("echo")
        ended.result(60)
    assert "gRPC's core cannot be asked for calls any more" in caplog.text
    stop(running, math.inf).result(30)
    assert call.code() is not Code.OK


def noticed(running: RunningRpc) -> Any:
    """Done once whoever waits for the end of the server is told."""
    waiting = running.server.wait_for_termination()
    return asyncio.run_coroutine_threadsafe(waiting, running.loop.loop)


# --- how it stops ---


def stop(running: RunningRpc, grace_s: float | None) -> Any:
    return asyncio.run_coroutine_threadsafe(running.server.stop(grace_s), running.loop.loop)


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionError:
        return True
    return False


def test_calls_in_flight_are_finished_and_no_others_taken(serve: Serve) -> None:
    told = Told()
    running = serve(wait=waits(told), echo=echo)
    call = running.call("wait")
    assert told.here.wait(60)
    stopped = stop(running, math.inf)
    until(lambda: refused(running.port))
    assert not stopped.done()
    told.release.set()
    assert call.result() == b"answer"
    stopped.result(60)


@pytest.mark.parametrize("graces", [(None,), (0.0,), (0.05,), (math.inf, None), (60.0, 0.0, None)])
def test_calls_are_ended_by_the_soonest_of_all_who_stop_it(
    serve: Serve, graces: tuple[float | None, ...]
) -> None:
    told = Told()
    running = serve(hang=hangs(told))
    call = running.call("hang")
    assert told.here.wait(60)
    for stopped in [stop(running, grace_s) for grace_s in graces]:
        stopped.result(30)
    assert told.said == ["cancelled"]
    assert call.code() is not Code.OK
    stop(running, None).result(30)
    until(lambda: not running.server._thread.is_alive())


def test_it_has_not_stopped_before_the_last_method_has_ended(serve: Serve) -> None:
    told = Told()
    running = serve(wait=waits(told))
    call = running.call("wait")
    assert told.here.wait(60)
    stopped = stop(running, None)
    assert call.code() is not Code.OK
    until(lambda: running.server._core_ended)
    assert not stopped.done()
    told.release.set()
    stopped.result(60)
    assert told.said == ["done"]


def test_calls_without_a_message_hold_up_no_stop(serve: Serve) -> None:
    told = Told()
    running = serve(hang=hangs(told))
    with Silent(running.port, UNARY + "hang", 2 * MOST_AHEAD):
        until(lambda: len(running.methods.asked) >= rpc_server._UNREAD)
        stop(running, None).result(30)
    assert not running.server._tasks


def test_what_comes_after_the_core_has_ended_is_left_alone(loop: LoopThread) -> None:
    """gRPC ends the process of who uses a queue that it has shut down."""

    async def scenario() -> None:
        server = RpcServer(Methods({}))
        await server.stop(None)
        late: Any = SimpleNamespace(left=False)
        server._begin(late)
        assert not server._tasks
        assert server._on_request(SimpleNamespace(success=True)) is None

    loop.run(scenario())


def test_a_call_whose_caller_has_left_by_then_is_not_begun(serve: Serve) -> None:
    running = serve()

    async def scenario() -> None:
        call: Any = SimpleNamespace(left=True)
        running.server._begin(call)
        assert not running.server._tasks

    running.loop.run(scenario())


def test_one_that_never_started_gives_its_port_back(loop: LoopThread) -> None:
    async def scenario() -> int:
        server = RpcServer(Methods({}))
        port = server.add_insecure_port("127.0.0.1:0")
        await asyncio.gather(server.stop(math.inf), server.stop(None))
        await server.wait_for_termination()
        return port

    assert refused(loop.run(scenario()))


def test_one_that_is_given_up_unused_is_freed(loop: LoopThread) -> None:
    async def scenario() -> None:
        RpcServer(Methods({})).add_insecure_port("127.0.0.1:0")
        gc.collect()

    loop.run(scenario())


STOPS = """
import asyncio, gc, os, time
from edgewright.serve.rpc_server import RpcServer

def threads():
    return len(os.listdir("/proc/self/task"))

async def main():
    server = RpcServer(None)
    server.add_insecure_port("127.0.0.1:0")
    server.start()
    await server.stop(None)

before = threads()
asyncio.run(main())
gc.collect()
while threads() > before:
    time.sleep(0.01)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads of gRPC's are counted in /proc")
def test_of_one_that_has_stopped_nothing_remains_in_grpc() -> None:
    """What its core keeps, and the threads that serve it, last until it is destroyed."""
    ended = subprocess.run([sys.executable, "-c", STOPS], capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


EXITS = """
import asyncio, sys
import grpc
from edgewright.serve.rpc_server import RpcServer

class Methods:
    def is_read_first(self, path):
        return path == "/unary/echo"
    def find(self, call):
        return self.echo if call.method == "/unary/echo" else self.hang
    async def echo(self, call):
        return await call.read()
    async def hang(self, call):
        await asyncio.Event().wait()

async def main():
    server = RpcServer(Methods())
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    echo = channel.unary_unary("/unary/echo")
    assert await asyncio.to_thread(echo, b"x", timeout=60) == b"x"
    channel.unary_unary("/stream/hang").future(b"")
    return echo

echo = asyncio.run(main())
if sys.argv[1] == "called":  # where nobody answers any more
    echo.future(b"x", timeout=1).exception()
    sys.exit(3)
"""


@pytest.mark.parametrize(("how", "code"), [("left", 0), ("called", 3)])
def test_an_interpreter_may_end_with_a_server_that_runs(how: str, code: int) -> None:
    ended = subprocess.run([sys.executable, "-c", EXITS, how], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (code, b""), ended.stderr
