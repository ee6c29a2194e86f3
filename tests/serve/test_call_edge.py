"""One handler for all methods of a server, and what is around every call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from edgewright.errors import OverloadedError
from edgewright.serve import call_edge, call_observer, transfers
from edgewright.serve.call_edge import CallEdge
from edgewright.serve.call_observer import CallObserver
from edgewright.serve.callers import Callers
from edgewright.serve.instruments import Instruments
from edgewright.serve.refusals import _BURST, Refusals
from edgewright.serve.rpc_call import CallLeft, RpcCall
from edgewright.serve.rpc_server import Method
from edgewright.serve.transfers import Transfers
from edgewright.v1.model_pb2_grpc import ModelServiceServicer, add_ModelServiceServicer_to_server
from edgewright.v1.prediction_pb2 import ClassifyTextResponse
from edgewright.v1.prediction_pb2_grpc import (
    PredictionServiceServicer,
    add_PredictionServiceServicer_to_server,
)

from .conftest import Gate, Launch, LoopThread, until

CALL = "/edgewright.v1.ModelService/GetModel"


def called(path: str) -> RpcCall:
    """A call as the edge looks at it to find its method."""
    call: RpcCall = SimpleNamespace(method=path, invocation_metadata=tuple)  # type: ignore[assignment]
    return call


def found(edge: CallEdge, path: str) -> Method | None:
    """What the edge finds for a call, as in a task of the call's own."""
    return copy_context().run(edge.find, called(path))


def edge_of_models() -> CallEdge:
    edge = CallEdge(CallObserver(Instruments()))
    add_ModelServiceServicer_to_server(ModelServiceServicer(), edge)  # type: ignore[no-untyped-call]
    return edge


def ended(instruments: Instruments) -> list[str]:
    """The codes of the calls that have ended."""
    return [
        sample.labels["code"]
        for metric in instruments.registry.collect()
        for sample in metric.samples
        if sample.name == "edgewright_requests_total"
    ]


def test_methods_of_generated_code_are_found_by_their_names_and_wrapped_once() -> None:
    edge = edge_of_models()
    method = found(edge, CALL)
    assert method is not None
    assert method is found(edge, CALL)
    assert found(edge, "/edgewright.v1.ModelService/Guess") is None


def test_a_unary_method_is_read_first_once_it_is_known() -> None:
    edge = edge_of_models()
    assert not edge.is_read_first(CALL)
    found(edge, CALL)
    assert edge.is_read_first(CALL)


@pytest.mark.parametrize("leaves", [True, False])
def test_who_leaves_before_his_message_is_not_one_who_sends_none(
    monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr(call_edge, "_LEAVING_S", 60 if leaves else 0)
    instruments, told = Instruments(), []
    edge = CallEdge(CallObserver(instruments))
    add_ModelServiceServicer_to_server(ModelServiceServicer(), edge)  # type: ignore[no-untyped-call]

    async def nothing() -> None:
        return None

    call: Any = called(CALL)
    call.read, call.left, call.time_remaining, call.peer = nothing, False, lambda: None, str
    call.is_ahead = True
    call.end_with = lambda code, *_: told.append(code)

    async def scenario() -> None:
        method = edge.find(call)
        assert method is not None
        answering = asyncio.ensure_future(method(call))
        await asyncio.sleep(0)
        if leaves:
            answering.cancel()
        await asyncio.wait([answering])

    asyncio.run(scenario())
    assert told == ([] if leaves else [grpc.StatusCode.INVALID_ARGUMENT])
    assert ended(instruments) == ["CANCELLED" if leaves else "INVALID_ARGUMENT"]


def test_a_message_that_does_not_come_is_waited_for_so_long_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call_edge, "_MESSAGE_S", 0.01)
    instruments, told = Instruments(), []
    edge = CallEdge(CallObserver(instruments))
    add_ModelServiceServicer_to_server(ModelServiceServicer(), edge)  # type: ignore[no-untyped-call]
    call: Any = called(CALL)
    call.left, call.time_remaining, call.peer, call.is_ahead = False, lambda: None, str, False
    call.end_with = lambda code, message, *_: told.append((code, message))

    async def scenario() -> None:
        call.read = asyncio.Event().wait
        method = edge.find(call)
        assert method is not None
        await asyncio.wait_for(method(call), 60)

    asyncio.run(scenario())
    assert told == [
        (
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "the call's message did not come within 0.01 s; send it at once",
        )
    ]
    assert ended(instruments) == ["DEADLINE_EXCEEDED"]


def test_who_leaves_a_drain_before_his_message_has_left_and_is_not_sent_elsewhere() -> None:
    instruments = Instruments()
    edge = CallEdge(CallObserver(instruments))
    add_ModelServiceServicer_to_server(ModelServiceServicer(), edge)  # type: ignore[no-untyped-call]
    call: Any = called(CALL)
    call.left, call.time_remaining, call.peer, call.is_ahead = True, lambda: None, str, False

    async def scenario() -> None:
        call.read = asyncio.Event().wait
        method: Any = edge.find(call)
        leaving = asyncio.create_task(method(call))
        await asyncio.sleep(0)
        edge.drain()
        leaving.cancel()
        await asyncio.wait([leaving], timeout=60)

    asyncio.run(scenario())
    assert ended(instruments) == ["CANCELLED"]


def test_a_message_that_is_here_is_no_transfer() -> None:
    """To note each that is costs a call 1.5 us."""
    moving = Transfers()
    moving.here = lambda: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    instruments = Instruments()
    edge = CallEdge(CallObserver(instruments), transfers=moving)
    add_PredictionServiceServicer_to_server(Roomy(), edge)  # type: ignore[no-untyped-call]
    call: Any = Unread()
    call.is_ahead = True

    async def scenario() -> None:
        method = edge.find(call)
        assert method is not None
        await method(call)

    asyncio.run(scenario())
    assert ended(instruments) == ["OK"]


def test_a_drain_reads_no_call_before_it_sends_it_elsewhere() -> None:
    edge = edge_of_models()
    found(edge, CALL)
    assert edge.is_read_first(CALL)
    edge.drain()
    assert not edge.is_read_first(CALL)


@pytest.mark.parametrize("limits", [{"most_calls": 1}, {"wants_certificate": True}])
def test_a_caller_whom_grpc_has_forgotten_has_left_and_is_refused_nothing(limits: Any) -> None:
    callers, instruments = Callers(**limits), Instruments()
    edge = CallEdge(CallObserver(instruments), callers)
    add_ModelServiceServicer_to_server(ModelServiceServicer(), edge)  # type: ignore[no-untyped-call]
    call: Any = called(CALL)
    call.time_remaining, call.peer, call.auth_context = lambda: None, str, dict

    async def scenario() -> None:
        method = edge.find(call)
        assert method is not None
        for _ in range(2):
            with pytest.raises(CallLeft):
                await method(call)

    asyncio.run(scenario())
    assert not callers._in_flight
    assert ended(instruments) == ["CANCELLED"]


def test_a_call_that_cannot_begin_is_none_that_a_drain_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edge = edge_of_models()
    monkeypatch.setattr(CallObserver, "begin", lambda *_: 1 / 0)

    async def scenario() -> None:
        call = called(CALL)
        call.peer = str  # type: ignore[method-assign]
        method = edge.find(call)
        assert method is not None
        with pytest.raises(ZeroDivisionError):
            await method(call)

    asyncio.run(scenario())
    assert edge.in_flight == 0


class Unread:
    """A call of a method that waits in the queue, whose message has not been read, or sent."""

    method = "/edgewright.v1.PredictionService/ClassifyText"
    left, is_ahead, read_bytes, trailers = False, False, 0, ()

    def __init__(self, sends: bool = True) -> None:
        self.code: grpc.StatusCode | None = None
        self._sends = sends

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:80"

    def time_remaining(self) -> None:
        return None

    async def fetch(self) -> None:
        if not self._sends:
            await asyncio.Event().wait()

    async def read(self) -> bytes:
        return b""

    def end_with(self, code: grpc.StatusCode, *_: Any) -> None:
        self.code = code


async def answered(edge: CallEdge, sends: bool = True) -> grpc.StatusCode | None:
    """How it ended such a call, None where that went well."""
    unread: Any = Unread(sends)
    method = edge.find(unread)
    assert method is not None
    await method(unread)
    code: grpc.StatusCode | None = unread.code
    return code


class Roomy(PredictionServiceServicer):
    """Answers every call that comes to it."""

    async def ClassifyText(self, _request: Any, _context: Any) -> Any:  # noqa: N802 -- gRPC's
        return ClassifyTextResponse()


class Crowded(PredictionServiceServicer):
    """Has room for no call that comes to it."""

    async def ClassifyText(self, _request: Any, _context: Any) -> Any:  # noqa: N802 -- gRPC's
        raise OverloadedError("too large for the room that there is", retry_after_s=0.1)


def test_who_was_let_in_and_is_refused_all_the_same_has_waited_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = [OverloadedError("full", retry_after_s=0.1)]
    edge = CallEdge(CallObserver(Instruments()), refusal=lambda *_: full[0] if full else None)
    add_PredictionServiceServicer_to_server(Crowded(), edge)  # type: ignore[no-untyped-call]
    waits = []

    async def pace(*_: Any, for_room: bool = False) -> bool:
        waits.append(for_room)
        await asyncio.sleep(0.01)
        return for_room

    monkeypatch.setattr(edge.refusals, "pace", pace)

    assert asyncio.run(answered(edge)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert waits == [True]
    full.clear()
    assert asyncio.run(answered(edge)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert waits == [True, False]  # which waits to be told alone


def test_where_there_is_no_room_calls_that_want_none_are_read_first_all_the_same() -> None:
    full = [OverloadedError("full", retry_after_s=0.1)]
    edge = CallEdge(CallObserver(Instruments()), refusal=lambda *_: full[0] if full else None)
    add_PredictionServiceServicer_to_server(Roomy(), edge)  # type: ignore[no-untyped-call]
    add_ModelServiceServicer_to_server(ModelServiceServicer(), edge)  # type: ignore[no-untyped-call]
    found(edge, CALL)
    asyncio.run(answered(edge))
    assert (edge.is_read_first(CALL), edge.is_read_first(Unread.method)) == (True, False)
    full.clear()
    asyncio.run(answered(edge))
    assert (edge.is_read_first(CALL), edge.is_read_first(Unread.method)) == (True, True)


def test_what_a_call_waited_for_room_is_time_that_its_answer_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=0.0)
    for module in (call_edge, call_observer):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    instruments = Instruments()
    full = OverloadedError("full", retry_after_s=0.1)
    edge = CallEdge(CallObserver(instruments), refusal=lambda *_: full)
    add_PredictionServiceServicer_to_server(Roomy(), edge)  # type: ignore[no-untyped-call]

    async def pace(*_: Any, **__: Any) -> bool:
        clock.now += 5.0
        return True

    monkeypatch.setattr(edge.refusals, "pace", pace)
    assert asyncio.run(answered(edge)) is None
    [took_s] = [
        sample.value
        for metric in instruments.registry.collect()
        for sample in metric.samples
        if sample.name == "edgewright_request_seconds_sum"
    ]
    assert took_s == 5.0


def holding_edge(room: list[int]) -> CallEdge:
    """One that holds whoever comes, until ``let_in``, where there is not ``room`` for one more."""
    full = OverloadedError("full", retry_after_s=0.1)
    edge = CallEdge(
        CallObserver(Instruments()),
        refusal=lambda waiting, coming: full if waiting or coming >= room[0] else None,
    )
    add_PredictionServiceServicer_to_server(Roomy(), edge)  # type: ignore[no-untyped-call]
    edge.refusals = Refusals(per_s=1e-8, longest_s=1e8)
    for _ in range(_BURST):
        edge.refusals.told(1e8)
    return edge


def test_whoever_comes_later_waits_behind_those_who_wait_though_there_is_room() -> None:
    room = [0]
    edge = holding_edge(room)

    async def scenario() -> None:
        first = asyncio.create_task(answered(edge))
        await asyncio.sleep(0)
        room[0] = 1
        second = asyncio.create_task(answered(edge))
        await asyncio.sleep(0)
        assert edge.refusals.waiting == 2
        edge.let_in()
        assert await asyncio.wait_for(asyncio.gather(first, second), 60) == [None, None]

    asyncio.run(scenario())


def test_room_is_kept_for_who_is_on_the_way_and_is_theirs_who_wait_where_he_leaves() -> None:
    room = [0]
    edge = holding_edge(room)

    async def scenario() -> None:
        leaving = asyncio.create_task(answered(edge, sends=False))
        await asyncio.sleep(0)
        room[0] = 1
        edge.let_in()
        while edge.refusals.held:  # he goes on to send, and does not
            await asyncio.sleep(0)
        waiting = asyncio.create_task(answered(edge))
        await asyncio.sleep(0)
        assert (edge.refusals.waiting, edge.refusals.on_the_way) == (1, 1)
        leaving.cancel()
        assert await asyncio.wait_for(waiting, 60) is None
        assert (edge.refusals.waiting, edge.refusals.on_the_way) == (0, 0)

    asyncio.run(scenario())


def test_only_what_nobody_took_since_the_drain_began_makes_a_caller_deaf(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(transfers, "time", SimpleNamespace(monotonic=lambda: clock.now))

    async def send(to_callers: Transfers) -> None:
        with to_callers.here():
            await asyncio.Event().wait()

    async def scenario() -> list[bool]:
        to_callers, ended = Transfers(), []
        writing = asyncio.create_task(send(to_callers))
        await asyncio.sleep(0)
        for now in (100.0, 101.9, 102.1):
            clock.now = now
            to_callers.end_stuck(2.0, begun=100.0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            ended.append(writing.done())
        return ended

    assert asyncio.run(scenario()) == [False, False, True]


def test_a_drain_counts_from_its_own_begin(
    launch: Launch,
    gate: Callable[[], Gate],
    loop: LoopThread,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = launch()
    held, begun = gate(), list[float]()
    monkeypatch.setattr(Transfers, "end_stuck", lambda _self, _seconds, since: begun.append(since))
    call = running.predictions.ClassifyText.future(running.request("bank"), timeout=60)
    until(held.entered.is_set)
    before = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(loop.run, running.server.drain())
        until(lambda: len(begun) > 1)
        held.open.set()
        assert drained.result()
    assert call.result().classifications
    assert len(set(begun)) == 1
    assert begun[0] >= before
