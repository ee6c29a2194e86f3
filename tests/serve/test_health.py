from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from edgewright.errors import IntegrityError
from edgewright.proof.goldens import check_goldens
from edgewright.serve import models
from edgewright.serve.health import HealthService

from .conftest import Launch, LoopThread, Running

SERVING, NOT_SERVING, UNKNOWN = (
    HealthCheckResponse.SERVING,
    HealthCheckResponse.NOT_SERVING,
    HealthCheckResponse.SERVICE_UNKNOWN,
)
NAMES = (
    "",
    "edgewright.v1.PredictionService",
    "edgewright.v1.ModelService",
    "edgewright.v1.FeedbackService",
    "inference.GRPCInferenceService",
    "news",
)


class Watch:
    """A watcher in a thread, whose statuses can be waited for."""

    def __init__(self, running: Running, name: str) -> None:
        self.seen: queue.Queue[int] = queue.Queue()
        self.call = HealthStub(running.channel).Watch(HealthCheckRequest(service=name))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for response in self.call:
                self.seen.put(response.status)
        except grpc.RpcError:
            self.seen.put(-1)

    def next(self) -> int:
        return self.seen.get(timeout=60)


def check(running: Running, name: str) -> int:
    stub = HealthStub(running.channel)
    status: int = stub.Check(HealthCheckRequest(service=name), timeout=30).status
    return status


def test_check_turns_with_the_servers_life(launch: Launch) -> None:
    running = launch(load=False)
    for name in NAMES[:3]:
        assert check(running, name) == NOT_SERVING
    running.load()
    for name in NAMES:
        assert check(running, name) == SERVING


def test_watch_tells_every_turn_up_to_the_drain(launch: Launch, loop: LoopThread) -> None:
    running = launch(load=False)
    watches = [Watch(running, name) for name in NAMES]
    expected = [*[NOT_SERVING] * (len(NAMES) - 1), UNKNOWN]
    assert [watch.next() for watch in watches] == expected
    running.load()
    first = [watch.next() for watch in watches]
    if first[-1] == NOT_SERVING:  # seen between being announced and being ready
        first[-1] = watches[-1].next()
    assert first == [SERVING] * len(NAMES)
    loop.run(running.server.drain())
    assert [watch.next() for watch in watches] == [NOT_SERVING] * len(NAMES)
    assert [watch.next() for watch in watches] == [-1] * len(NAMES)


def test_no_watcher_hears_serving_before_the_goldens_have_passed(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_pass = threading.Event(), threading.Event()

    def held(*arguments: Any, **settings: Any) -> Any:
        begun.set()
        assert may_pass.wait(30)
        return check_goldens(*arguments, **settings)

    monkeypatch.setattr(models, "check_goldens", held)
    running = launch(load=False)
    watch = Watch(running, "")
    assert watch.next() == NOT_SERVING
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(running.load)
        assert begun.wait(30)
        assert check(running, "") == NOT_SERVING
        assert watch.seen.empty()
        may_pass.set()
        loaded.result()
    assert watch.next() == SERVING


def test_no_watcher_hears_serving_where_the_goldens_fail(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_arguments: Any, **_settings: Any) -> Any:
        raise IntegrityError("the goldens come out otherwise")

    monkeypatch.setattr(models, "check_goldens", wrong)
    running = launch(load=False)
    watch = Watch(running, "")
    with pytest.raises(IntegrityError):
        running.load()
    assert watch.next() == NOT_SERVING
    assert check(running, "") == NOT_SERVING
    assert watch.seen.empty()


def test_watchers_hear_not_serving_while_calls_are_still_taken(
    launch: Launch, loop: LoopThread
) -> None:
    running = launch(drain_delay_s=1000.0)
    watch = Watch(running, "news")
    assert watch.next() == SERVING
    draining = asyncio.run_coroutine_threadsafe(running.server.drain(), loop.loop)
    assert watch.next() == NOT_SERVING
    assert running.classify("bank").classifications
    draining.cancel()


def test_an_unknown_name_is_not_found(launch: Launch) -> None:
    with pytest.raises(grpc.RpcError, match="no service 'wine'") as failure:
        check(launch(), "wine")
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


def test_list_tells_every_name_where_the_protocol_has_it(launch: Launch) -> None:
    listed = launch().channel.unary_unary("/grpc.health.v1.Health/List")
    if not hasattr(health_pb2, "HealthListResponse"):  # an older grpcio-health-checking
        with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
            listed(b"", timeout=30)
        return
    answer = health_pb2.HealthListResponse.FromString(listed(b"", timeout=30))
    assert {name: each.status for name, each in answer.statuses.items()} == dict.fromkeys(
        NAMES, SERVING
    )


def test_a_watcher_that_leaves_takes_nothing_from_the_others() -> None:
    async def scenario() -> None:
        health = HealthService()

        def watch() -> AsyncIterator[HealthCheckResponse]:
            return health.Watch(HealthCheckRequest(), None)

        stays, leaves = watch(), watch()
        assert (await anext(stays)).status == (await anext(leaves)).status == NOT_SERVING
        leaving = asyncio.ensure_future(anext(leaves))
        staying = asyncio.ensure_future(anext(stays))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        health.set_all(serving=True)
        assert (await asyncio.wait_for(staying, 10)).status == SERVING

    asyncio.run(scenario())


def test_the_same_status_is_told_once() -> None:
    async def scenario() -> None:
        health = HealthService()
        watch = health.Watch(HealthCheckRequest(), None)
        await anext(watch)
        following = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        health.set_all(serving=False)
        await asyncio.sleep(0.01)
        assert not following.done()
        health.set_all(serving=True)
        assert (await asyncio.wait_for(following, 10)).status == SERVING

    asyncio.run(scenario())
