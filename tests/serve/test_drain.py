"""The end of a server's life, with calls and streams still open."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from edgewright.serve import http_models, server
from edgewright.serve.grpc_options import MAX_CALLS_PER_CONNECTION
from edgewright.serve.http_messages import Response
from edgewright.v1 import model_pb2

from .conftest import Gate, Launch, LoopThread, Running, until
from .test_faults import classify_request

Code = grpc.StatusCode


def test_a_drain_finishes_what_is_in_flight_and_refuses_what_comes(
    launch: Launch, gate: Callable[[], Gate], loop: LoopThread
) -> None:
    running = launch()
    held = gate()
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(running.classify, "bank")
        until(held.entered.is_set)
        drained = pool.submit(loop.run, running.server.drain())
        until(lambda: not running.server.is_ready())
        until(lambda: refused(running))
        assert not call.done()
        held.open.set()
        assert call.result().classifications
        drained.result()


def test_calls_that_grpc_has_not_handed_over_are_sent_to_another_replica(
    launch: Launch, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_SENDING_AWAY_S", 60.0)
    running, held, go_on = launch(), threading.Event(), threading.Event()
    edge, calls = running.server._edge, 8 * MAX_CALLS_PER_CONNECTION
    plain = edge.drain

    def drain() -> None:
        """They come before the loop goes on."""
        plain()
        held.set()
        assert go_on.wait(60)

    async def called() -> bool:
        await asyncio.sleep(0.01)
        return edge.came < calls

    monkeypatch.setattr(edge, "drain", drain)
    monkeypatch.setattr(running.server, "_called", called)
    with contextlib.ExitStack() as opened:
        channels = [opened.enter_context(channel_to(running)) for _ in range(8)]
        for channel in channels:
            grpc.channel_ready_future(channel).result(60)
        drained = asyncio.run_coroutine_threadsafe(running.server.drain(), loop.loop)
        assert held.wait(60)
        stubs = [type(running.predictions)(channel) for channel in channels]
        waiting = [
            stub.ClassifyText.future(running.request("bank"), timeout=60)
            for stub in stubs
            for _ in range(MAX_CALLS_PER_CONNECTION)
        ]
        go_on.set()
        told = Counter((each.code(), each.details()) for each in waiting)
    assert drained.result(60)
    assert told == {(Code.UNAVAILABLE, "the server is shutting down; call another replica"): calls}


def test_calls_that_come_to_a_drain_are_sent_away_and_probes_answered(
    launch: Launch, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_SENDING_AWAY_S", 60.0)
    running, go_on = launch(), threading.Event()

    async def called() -> bool:
        await asyncio.sleep(0.01)
        return not go_on.is_set()

    monkeypatch.setattr(running.server, "_called", called)
    drained = asyncio.run_coroutine_threadsafe(running.server.drain(), loop.loop)
    until(lambda: running.server._edge._draining)
    with pytest.raises(grpc.RpcError) as failure:
        running.classify("bank")
    assert failure.value.code() is Code.UNAVAILABLE
    assert failure.value.details() == "the server is shutting down; call another replica"
    answer = HealthStub(running.channel).Check(HealthCheckRequest(), timeout=60)
    assert answer.status == HealthCheckResponse.NOT_SERVING
    assert not drained.done()
    go_on.set()
    assert drained.result(60)


def test_calls_are_waited_for_as_long_as_they_come_but_not_for_ever(
    launch: Launch, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, told = launch(), list[bool]()

    async def called() -> bool:
        told.append(True)
        await asyncio.sleep(0.01)
        return len(told) < 3

    monkeypatch.setattr(running.server, "_called", called)
    loop.run(running.server._send_away(math.inf))
    assert len(told) == 3
    told.clear()
    loop.run(running.server._send_away(0.0))
    assert len(told) == 1


def channel_to(running: Running) -> grpc.Channel:
    """By a connection of its own."""
    return grpc.insecure_channel(
        f"127.0.0.1:{running.server.port}", options=[("grpc.use_local_subchannel_pool", 1)]
    )


class Relay:
    """A way to a server on which its answers wait until they are let through."""

    def __init__(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.through = threading.Event()
        self.through.set()
        self._server = socket.socket()
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._server.connect(("127.0.0.1", port))
        threading.Thread(target=self._connect, daemon=True).start()

    def _connect(self) -> None:
        client, _ = self._listener.accept()
        with client:
            asking = threading.Thread(target=self._pass, args=(client, self._server))
            asking.start()
            self._pass(self._server, client, self.through)
            asking.join()

    def _pass(
        self, source: socket.socket, target: socket.socket, through: threading.Event | None = None
    ) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(4096):
                if through is not None:
                    through.wait(60)
                target.sendall(part)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in (self._listener, self._server):
            each.close()


@pytest.fixture
def relay() -> Iterator[Callable[[int], Relay]]:
    relays: list[Relay] = []

    def make(port: int) -> Relay:
        relays.append(Relay(port))
        return relays[-1]

    yield make
    for each in relays:
        each.close()


ROWS = 4000  # whose answers no buffer on the way holds


def test_a_drain_cuts_off_no_connection_that_still_sends(
    launch: Launch,
    relay: Callable[[int], Relay],
    loop: LoopThread,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_STUCK_S", 60.0)
    running = launch(max_texts=ROWS, queue_size=ROWS, max_wait_s=60.0)
    slow = relay(running.server.port)
    stop, busy = running.server._rpc.stop, running.server._busy
    ended = list[float | None]()

    async def spied(grace: float | None) -> None:
        if grace is None:
            ended.append(None)
        await stop(grace)
        if grace is not None:
            ended.append(grace)

    async def last_of_them_lets_through() -> bool:
        if seen := await busy():
            return seen
        slow.through.set()
        return False

    with grpc.insecure_channel(f"127.0.0.1:{slow.port}") as channel, ThreadPoolExecutor(1) as pool:
        grpc.channel_ready_future(channel).result(60)
        slow.through.clear()
        stub = type(running.predictions)(channel)
        call = stub.ClassifyText.future(running.request(*["bank"] * ROWS), timeout=60)
        until(lambda: running.metric("edgewright_requests_total", code="OK") == 1)
        monkeypatch.setattr(running.server._rpc, "stop", spied)
        monkeypatch.setattr(running.server, "_busy", last_of_them_lets_through)
        drained = pool.submit(loop.run, running.server.drain())
        assert len(call.result().classifications) == ROWS
        assert drained.result()
    assert ended == [math.inf, None]


def test_a_drain_waits_for_what_http_still_sends(
    launch: Launch, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_STUCK_S", 60.0)
    large = Response(200, "application/json", bytes(16 << 20))  # more than the system holds
    monkeypatch.setattr(http_models, "json_answer", lambda _told: large)
    running = launch()
    with socket.socket() as slow, ThreadPoolExecutor(1) as pool:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(60)
        slow.connect(("127.0.0.1", running.server.metrics_port))
        slow.sendall(classify_request(1))
        until(lambda: running.metric("edgewright_requests_total", code="OK") == 1)
        busy, told = running.server._busy, list[bool]()

        async def watched() -> bool:
            told.append(await busy())
            return told[-1]

        monkeypatch.setattr(running.server, "_busy", watched)
        ended = pool.submit(loop.run, end(running))
        until(lambda: len(told) > 1 or ended.done())
        assert all(told)
        with slow.makefile("rb") as answer:
            length = int(
                re.search(b"Content-Length: ([0-9]+)", b"".join(iter(answer.readline, b"\r\n")))[1]
            )
            assert len(answer.read(length)) == length
        assert ended.result()


async def end(running: Running) -> bool:
    whole = await running.server.drain()
    await running.server.__aexit__(None, None, None)
    return whole


def refused(running: Running) -> bool:
    with channel_to(running) as channel:
        stub = type(running.models)(channel)
        try:
            stub.ListModels(model_pb2.ListModelsRequest(), timeout=30)
        except grpc.RpcError as error:
            return error.code() is Code.UNAVAILABLE
        return False


def test_a_drain_does_not_wait_for_open_streams(launch: Launch, loop: LoopThread) -> None:
    running = launch(grace_s=1000.0, reflection=True)
    stub = ServerReflectionStub(running.channel)
    finished = threading.Event()

    def endless() -> Iterator[ServerReflectionRequest]:
        yield ServerReflectionRequest(list_services="")
        finished.wait(60)

    answers = stub.ServerReflectionInfo(endless())
    next(answers)
    loop.run(running.server.drain())
    finished.set()
    with pytest.raises(grpc.RpcError):
        list(answers)


@pytest.mark.parametrize("path", ["PredictionService/ClassifyText", "ModelService/GetModel"])
def test_a_caller_who_sends_no_message_costs_a_drain_no_grace(
    launch: Launch,
    loop: LoopThread,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
) -> None:
    monkeypatch.setattr(server, "_STUCK_S", 0.1)
    running = launch(grace_s=1000.0)
    release = threading.Event()
    silent = running.channel.stream_unary(f"/edgewright.v1.{path}")
    call = silent.future(open_stream(release), timeout=600)
    until(lambda: running.server.in_flight == 1)
    assert loop.run(running.server.drain())
    assert running.server.in_flight == 0
    assert "1 calls were ended whose callers do not send a message" in caplog.text
    assert call.code() is Code.UNAVAILABLE
    assert call.details() == "the server is shutting down; call another replica"
    assert running.metric("edgewright_requests_total", code="UNAVAILABLE") == 1
    release.set()


def open_stream(release: threading.Event) -> Iterator[bytes]:
    """No messages, and no end before ``release``."""
    release.wait(600)
    yield from ()


def test_a_drain_ends_after_the_grace_even_if_a_call_does_not_and_says_so(
    launch: Launch,
    gate: Callable[[], Gate],
    loop: LoopThread,
    caplog: pytest.LogCaptureFixture,
) -> None:
    running = launch(grace_s=0.1)
    held = gate()
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(running.classify, "bank")
        until(held.entered.is_set)
        drained = pool.submit(loop.run, running.server.drain())
        failure = call.exception()
        assert isinstance(failure, grpc.RpcError)
        assert failure.code() in (Code.CANCELLED, Code.UNAVAILABLE)
        held.open.set()
        drained.result()
    assert "1 calls were not finished within --grace (0.1 s); they are ended" in caplog.text


def test_no_timer_ends_a_drain_beside_the_server_s_own(
    launch: Launch, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = launch(grace_s=5.0)
    stop, graces = running.server._rpc.stop, list[float | None]()

    def spied(grace: float | None) -> Awaitable[None]:
        graces.append(grace)
        return stop(grace)

    monkeypatch.setattr(running.server._rpc, "stop", spied)
    loop.run(running.server.drain())
    # Two timers that run out together have gRPC touch a server that it has freed.
    assert set(graces) == {math.inf, None}
