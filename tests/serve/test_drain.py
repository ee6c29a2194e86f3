"""The end of a server's life, with calls and streams still open."""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from edgewright.v1 import model_pb2

from .conftest import Gate, Launch, LoopThread, Running, until

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


def refused(running: Running) -> bool:
    with grpc.insecure_channel(
        f"127.0.0.1:{running.server.port}", options=[("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
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
