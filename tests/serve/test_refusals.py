"""Refusals are told at a pace, so that refusing takes little from answering."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from edgewright.errors import OverloadedError
from edgewright.rpc_errors import STATUS_METADATA_KEY
from edgewright.serve.admission import Queue, QueueLimit
from edgewright.serve.call_edge import CallEdge
from edgewright.serve.call_observer import CallObserver
from edgewright.serve.event_loop import run
from edgewright.serve.instruments import Instruments
from edgewright.serve.refusals import _BURST, _TICK_S, Refusals, _ByConnection, due

from .conftest import Gate, Launch, Running, until
from .full_queue import CLASSIFY, FullQueue
from .raw_http2 import DeafClient
from .test_callers import greedy_and_modest

FOR_EVER = 1e8  # seconds, more than any clock of a loop shows: what is held the test tells
RETRY_S = 0.5


def refusal() -> OverloadedError:
    return OverloadedError("full", retry_after_s=RETRY_S)


def busy(**limits: Any) -> Refusals:
    """So many were told that the next one would have to wait."""
    refusals = Refusals(**limits)
    for _ in range(_BURST):
        refusals.told(0.0)
    return refusals


def test_few_are_told_at_once_and_what_was_too_much_is_soon_forgotten() -> None:
    refusals = Refusals(per_s=100.0, longest_s=2.0)
    for _ in range(_BURST):
        assert refusals.delay_s(0.0, "a", None) == 0
        refusals.told(0.0)
    assert refusals.delay_s(0.0, "a", None) == pytest.approx(1 / 100)
    for _ in range(1000):
        refusals.told(0.0)
    assert refusals.delay_s(0.5 / 100, "a", None) > 0
    assert refusals.delay_s(1.5 / 100, "a", None) == 0


def test_what_was_told_counts() -> None:
    refusals = Refusals(per_s=1 / FOR_EVER)
    for _ in range(_BURST - 1):
        refusals.told(FOR_EVER)

    async def scenario() -> list[float]:
        clock = asyncio.get_running_loop().time
        before_s = refusals.delay_s(clock(), "a", None)
        await refusals.pace(refusal(), "a", None)
        return [before_s, refusals.delay_s(clock(), "a", None)]

    before_s, after_s = run(scenario())
    assert before_s == 0 < after_s


def test_no_call_waits_for_longer_than_it_may_nor_for_half_of_what_its_deadline_leaves() -> None:
    refusals = busy(per_s=0.1, longest_s=2.0)
    assert refusals.delay_s(0.0, "a", None) == 2.0
    assert refusals.delay_s(0.0, "a", 60.0) == 2.0
    assert refusals.delay_s(0.0, "a", 0.5) == 0.25
    assert refusals.delay_s(0.0, "a", 0.0) == 0


def holding(
    refusals: Refusals,
    connections: str,
    then: Callable[[list[asyncio.Task[bool]]], Any],
    *,
    for_room: bool = False,
) -> Any:
    """What ``then`` gives while a call of each of ``connections``, by letter, is held."""

    async def scenario() -> Any:
        tasks = [
            asyncio.create_task(refusals.pace(refusal(), each, None, for_room=for_room))
            for each in connections
        ]
        await asyncio.sleep(0)
        given = then(tasks)
        if isinstance(given, Coroutine):
            given = await given
        refusals.drain()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        return given

    return run(scenario())


waiting_for_room = partial(holding, for_room=True)


def scarce(most: int = 100) -> Refusals:
    """Where every call is held for ever: all are late by any clock."""
    refusals = Refusals(per_s=1 / FOR_EVER, longest_s=FOR_EVER, most=most)
    for _ in range(_BURST):
        refusals.told(FOR_EVER)
    return refusals


def test_a_connection_that_sends_many_delays_its_own() -> None:
    def seen(_tasks: Any) -> Any:
        refusals._per_s, refusals._longest_s = 100.0, 10.0
        return [refusals.delay_s(0.0, each, None) for each in "abc"]

    refusals = scarce()
    many, one, none = holding(refusals, "a" * 50 + "b", seen)
    assert many == pytest.approx(51 * 2 / 100)
    assert one == pytest.approx(2 * 2 / 100)
    assert none == pytest.approx(1 * 3 / 100)


@given(
    came=st.floats(0, 1000),
    delay_s=st.floats(0, 2, exclude_min=True),
    left_s=st.none() | st.floats(0, 10, exclude_min=True),
)
def test_no_call_is_told_after_half_of_what_its_deadline_leaves(
    came: float, delay_s: float, left_s: float | None
) -> None:
    most_s = delay_s if left_s is None else left_s / 2
    told_after_s = due(came, min(delay_s, most_s), left_s) - came
    assert 0 <= told_after_s <= most_s + (_TICK_S if left_s is None else 1e-9)


def test_calls_that_are_due_in_the_same_tick_are_told_together() -> None:
    assert due(0.9 * _TICK_S, 0.5 * _TICK_S, None) == due(0.1 * _TICK_S, 1.5 * _TICK_S, 60.0)
    assert due(0.0, 2.5 * _TICK_S, 5.5 * _TICK_S) == 2 * _TICK_S  # the next would be too late


def test_what_is_held_is_bounded() -> None:
    refusals = scarce(most=2)
    held, delay_s = holding(
        refusals, "aaaa", lambda tasks: (refusals.held, refusals.delay_s(0.0, "a", None))
    )
    assert (held, delay_s) == (2, 0)


@pytest.mark.parametrize(
    ("connections", "told"),
    [
        ("aaaab", [3]),
        ("aaaabbc", [1, 2, 3]),
        ("aabbc", [1]),
        ("abcde", [4]),
        ("aaaaa", [4]),
    ],
)
def test_where_all_places_are_taken_who_has_fewer_than_his_share_gets_one_of_who_has_most(
    connections: str, told: list[int]
) -> None:
    async def those_told(tasks: list[asyncio.Task[bool]]) -> tuple[list[int], int]:
        await asyncio.sleep(0)
        return [at for at, task in enumerate(tasks) if task.done()], refusals.held

    refusals = scarce(most=4)
    assert holding(refusals, connections, those_told) == (told, 4)
    assert refusals.held == 0


def test_whom_a_place_is_taken_from_is_known_without_a_look_at_every_connection() -> None:
    async def calls_made(connections: int) -> int:
        held, call = _ByConnection(), asyncio.get_running_loop().create_future()
        for number in range(connections):
            held.add(str(number), call)
        made: list[str] = []
        sys.setprofile(lambda _frame, event, _of: made.append(event))
        try:
            held.newest_of_most()
        finally:
            sys.setprofile(None)
        return len(made)

    assert run(calls_made(1000)) == run(calls_made(2))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1))
def test_who_has_most_is_known_whoever_comes_and_leaves(steps: list[tuple[str, bool]]) -> None:
    async def scenario() -> None:
        loop, held = asyncio.get_running_loop(), _ByConnection()
        calls: dict[str, list[asyncio.Future[bool]]] = {each: [] for each in "abc"}
        for connection, comes in steps:
            if comes:
                calls[connection].append(loop.create_future())
                held.add(connection, calls[connection][-1])
            elif calls[connection]:
                held.discard(connection, calls[connection].pop(0))
            if most := max(map(len, calls.values())):
                greediest, newest = held.newest_of_most()
                assert len(calls[greediest]) == most
                assert newest is calls[greediest][-1]

    asyncio.run(scenario())


def test_who_lost_his_place_is_not_let_in() -> None:
    async def let_in(tasks: list[asyncio.Task[bool]]) -> list[bool]:
        assert refusals.waiting == 2
        while refusals.waiting:
            refusals.let_in()
        await asyncio.sleep(0)
        return [task.result() for task in tasks]

    refusals = scarce(most=2)
    assert waiting_for_room(refusals, "aab", let_in) == [True, False, True]
    assert refusals.on_the_way == 2


def test_a_caller_who_leaves_is_held_no_more() -> None:
    async def leave(tasks: list[asyncio.Task[bool]]) -> tuple[int, int]:
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        return refusals.held, refusals._held.connections

    refusals = scarce()
    assert holding(refusals, "ab", leave) == (1, 1)
    assert (refusals.held, refusals._held.connections) == (0, 0)


def test_a_drain_tells_all_and_holds_none() -> None:
    refusals = scarce()
    assert holding(refusals, "ab", lambda _tasks: refusals.held) == 2
    assert (refusals.held, refusals.delay_s(0.0, "a", None)) == (0, 0)


def test_who_was_held_is_to_come_back_so_much_sooner() -> None:
    told = refusal()

    async def scenario() -> None:
        refusals = scarce()
        refusals._longest_s = RETRY_S / 2
        await refusals.pace(told, "a", None)

    run(scenario())
    assert 0.05 <= told.retry_after_s <= RETRY_S / 2
    assert told.retry_after_s == round(told.retry_after_s, 2)


@pytest.mark.parametrize(
    ("connections", "order"),
    [("aaa", [0, 1, 2]), ("aaab", [0, 3, 1, 2]), ("aabbc", [0, 2, 4, 1, 3])],
)
def test_connections_take_turns_and_of_each_who_came_first_is_let_in_first(
    connections: str, order: list[int]
) -> None:
    async def let_in(tasks: list[asyncio.Task[bool]]) -> list[int]:
        seen: list[int] = []
        for _ in tasks:
            refusals.let_in()
            await asyncio.sleep(0)
            refusals.entered()
            seen += [at for at, task in enumerate(tasks) if task.done() and at not in seen]
        refusals.let_in()  # for whom there is nobody
        return seen if all(task.result() for task in tasks) else []

    refusals = scarce()
    assert waiting_for_room(refusals, connections, let_in) == order
    assert (refusals.held, refusals.waiting, refusals.on_the_way) == (0, 0, 0)


def test_who_waits_to_be_told_alone_is_not_let_in() -> None:
    def let_in(_tasks: Any) -> tuple[int, int, int]:
        refusals.let_in()
        return refusals.held, refusals.waiting, refusals.on_the_way

    refusals = scarce()
    assert holding(refusals, "ab", let_in) == (2, 0, 0)


@pytest.mark.parametrize("let_in", [True, False])
def test_whoever_leaves_does_not_wait_for_room_and_is_not_on_the_way(let_in: bool) -> None:
    """Even as he is let in."""

    async def leave(tasks: list[asyncio.Task[bool]]) -> tuple[int, int]:
        if let_in:
            refusals.let_in()
        tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        return refusals.on_the_way, refusals.waiting

    refusals = scarce()
    assert waiting_for_room(refusals, "ab", leave) == (0, 1)


def test_as_many_are_let_in_at_once_as_there_is_room_for() -> None:
    def refused(_waiting: int, coming: int) -> OverloadedError | None:
        return refusal() if coming == 2 else None

    edge = CallEdge(CallObserver(Instruments()), refusal=refused)
    edge.refusals = scarce()

    async def let_in(_tasks: Any) -> list[tuple[int, int]]:
        seen = []
        for _ in range(2):
            edge.let_in()
            seen.append((edge.refusals.waiting, edge.refusals.on_the_way))
            edge.refusals.entered()
        return seen

    assert waiting_for_room(edge.refusals, "abcd", let_in) == [(2, 2), (1, 2)]


def test_calls_of_a_server_wait_for_room_and_are_answered(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    full = FullQueue(launch, gate, scarce())
    request = full.running.request("bank")
    calls = [full.running.predictions.ClassifyText.future(request, timeout=60) for _ in range(5)]
    until(lambda: full.refusals.waiting == 5)
    full.answer()
    assert all(call.result().classifications for call in calls)
    until(lambda: full.running.server.in_flight == 0)
    assert full.running.metric("edgewright_rejected_total", reason="QUEUE_FULL") == 0
    assert (full.refusals.held, full.refusals.on_the_way) == (0, 0)


def test_room_that_a_call_by_http_leaves_is_theirs_who_wait(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    running = launch(instances=1, queue_size=2, max_texts=2)
    refusals = running.server._edge.refusals = scarce()
    closed = gate()
    with ThreadPoolExecutor(1) as pool:
        by_http = pool.submit(post_two_texts, running)
        until(lambda: running.server.batcher.queue.rows == 2)
        call = running.predictions.ClassifyText.future(running.request("bank"), timeout=60)
        until(lambda: refusals.waiting == 1)
        closed.open.set()
        assert by_http.result() == 200
    assert call.result().classifications


def post_two_texts(running: Running) -> int:
    connection = HTTPConnection("127.0.0.1", running.server.metrics_port, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/models/news:classify", '{"texts": ["bank", "vote"]}', headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_who_is_slow_to_send_holds_up_nobody_who_waits_for_room(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    full = FullQueue(launch, gate, scarce())
    (first,) = full.held()  # so that those who come now are not read first
    slow = [DeafClient(full.running.server.port) for _ in range(3)]
    for each in slow:
        each.call(CLASSIFY, [], last=False)
    until(lambda: full.refusals.waiting == 4)
    call = full.running.predictions.ClassifyText.future(full.running.request("bank"), timeout=60)
    until(lambda: full.refusals.waiting == 5)
    full.answer()
    assert call.result().classifications
    assert first.code() is grpc.StatusCode.INVALID_ARGUMENT  # it has no texts
    for each in slow:
        each.close()
    until(lambda: full.running.server.in_flight == 0)
    assert (full.refusals.held, full.refusals.on_the_way) == (0, 0)


def test_nobody_overtakes_those_who_wait_for_room() -> None:
    queue = Queue(QueueLimit(rows=10, wait_s=1.0))
    assert queue.refusal() is None
    behind = queue.refusal(waiting=3)
    assert behind is not None
    assert "3 calls wait for room" in str(behind)


def test_refused_calls_of_a_server_wait_to_be_told(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    full = FullQueue(launch, gate, scarce())
    calls, running = full.held(3), full.running
    assert running.metric("edgewright_held_calls") == 3
    calls[0].cancel()
    until(lambda: full.refusals.held == 2)
    until(lambda: running.server.in_flight == 3)
    assert not any(call.done() for call in calls[1:])
    assert running.metric("edgewright_rejected_total", reason="QUEUE_FULL") == 0
    full.tell()
    codes = Counter(call.code() for call in calls[1:])
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED: 2}
    status = Status.FromString(dict(calls[1].trailing_metadata())[STATUS_METADATA_KEY])
    retry = RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() > 0
    assert running.metric("edgewright_rejected_total", reason="QUEUE_FULL") == 2
    full.answer()


def test_what_a_refusal_waits_to_be_told_is_no_time_of_its_call(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    full = FullQueue(launch, gate, scarce())
    begun = time.monotonic()
    (call,) = full.held()
    held = time.monotonic()
    time.sleep(1)
    held_s = time.monotonic() - held
    full.tell()
    assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    until(lambda: full.running.metric("edgewright_request_seconds_count") == 1)
    took_s = full.running.metric("edgewright_request_seconds_sum")
    assert 0 < took_s <= time.monotonic() - begun - held_s
    full.answer()


def test_whoever_waits_to_be_told_has_a_call_in_flight(
    launch: Launch, gate: Callable[[], Gate], tmp_path: Path
) -> None:
    """As he sees it: he has no answer yet, and who has many calls delays those of others."""
    greedy, modest = greedy_and_modest(tmp_path / "tokens")
    callers = {"tokens": tmp_path / "tokens", "max_calls_per_caller": 1}
    full = FullQueue(launch, gate, scarce(), metadata=modest, **callers)
    (first,) = full.held(metadata=greedy)
    second = full.running.channel.unary_unary(CLASSIFY).future(b"", metadata=greedy, timeout=60)
    until(lambda: full.refusals.held == 2)
    full.tell()
    assert "2 rows wait and 2 may" in first.details()
    assert "greedy has 1 calls in flight" in second.details()
    full.answer()


@pytest.mark.parametrize(("characters", "held"), [(1000, 1), (40_000, 0)])
def test_what_was_read_waits_only_where_it_is_small(
    launch: Launch, gate: Callable[[], Gate], characters: int, held: int
) -> None:
    refusals = scarce()
    running = launch(instances=1, queue_size=2, max_texts=2, max_text_chars=40_000)
    running.server._edge.refusals = refusals
    closed = gate()
    waiting = running.predictions.ClassifyText.future(running.request("bank"), timeout=60)
    until(lambda: running.server.batcher.queue.rows == 1)
    request = running.request("a" * characters, "b" * characters)  # two rows, and one has room
    call = running.predictions.ClassifyText.future(request, timeout=60)
    until(lambda: refusals.held == 1 if held else call.done())
    running.loop.loop.call_soon_threadsafe(refusals.drain)
    assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    closed.open.set()
    waiting.result()


def test_a_drain_of_the_server_sends_those_who_wait_elsewhere(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    full = FullQueue(launch, gate, scarce())
    (call,) = full.held()
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(full.running.loop.run, full.running.server.drain())
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert call.details() == "the server is shutting down; call another replica"
        full.answer()
        assert drained.result()
