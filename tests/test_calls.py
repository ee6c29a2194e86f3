"""What is tried again, when, and for how long; and how a long list is cut."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from both_clients import KINDS, Clock, ask
from fake_server import FakeServer
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright import call_inputs, calls
from edgewright.calls import Calls, Pause, Send
from edgewright.deadline import Deadline
from edgewright.errors import (
    DeadlineError,
    EdgewrightError,
    InputError,
    ModelNotFoundError,
    NotReadyError,
    OverloadedError,
    ServiceError,
)
from edgewright.rpc_errors import STATUS_METADATA_KEY, to_status
from edgewright.v1 import model_pb2


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.text(max_size=12), min_size=1), st.integers(1, 5), st.integers(1, 20))
def test_requests_hold_every_text_once_and_stay_small(
    texts: list[str], max_texts: int, max_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_inputs, "MAX_TEXTS", max_texts)
        chunks = list(call_inputs.chunks(texts, lambda text: len(text.encode()), max_bytes))
    assert [text for chunk in chunks for text in chunk] == texts
    for chunk in chunks:
        assert 1 <= len(chunk) <= max_texts
        assert len(chunk) == 1 or sum(len(text.encode()) for text in chunk) <= max_bytes


def test_unavailable_is_tried_again_with_growing_pauses(kind: str, server: FakeServer) -> None:
    server.failures = [
        NotReadyError("draining"),
        grpc.StatusCode.UNAVAILABLE,
        NotReadyError("again"),
    ]
    clock = Clock()
    (answer,) = ask(kind, server.target, "classify", "x", clock=clock)
    assert answer.label == "business"
    assert len(server.requests) == 4
    for attempt, pause in enumerate(clock.slept):
        longest = calls.FIRST_DELAY_S * 2**attempt
        assert longest / 2 <= pause < longest
    assert len(set(clock.slept)) == 3


def test_an_overload_is_tried_again_no_sooner_than_the_server_said(
    kind: str, server: FakeServer
) -> None:
    server.failures = [OverloadedError("full", retry_after_s=1.5)]
    clock = Clock()
    ask(kind, server.target, "classify", "x", clock=clock)
    (pause,) = clock.slept
    assert 1.5 < pause <= 1.5 + calls.FIRST_DELAY_S


def test_a_time_that_has_passed_already_is_no_time_to_wait(kind: str, server: FakeServer) -> None:
    server.failures = [OverloadedError("full", retry_after_s=-1.5)]
    clock = Clock()
    ask(kind, server.target, "classify", "x", clock=clock)
    (pause,) = clock.slept
    assert 0 < pause <= calls.FIRST_DELAY_S


def test_an_overload_that_lasts_past_the_deadline_is_told_at_once(
    kind: str, server: FakeServer
) -> None:
    server.failures = [OverloadedError("full", retry_after_s=8.0)]
    clock = Clock()
    with pytest.raises(OverloadedError) as caught:
        ask(kind, server.target, "classify", "x", clock=clock, timeout_s=5.0)
    assert caught.value.retry_after_s == 8.0
    assert clock.slept == []


@pytest.mark.parametrize(
    "failure",
    [
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # without RetryInfo
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        ModelNotFoundError("no model"),
        InputError("bad", field="texts"),
    ],
    ids=str,
)
def test_nothing_else_is_tried_again(
    kind: str, server: FakeServer, failure: BaseException | grpc.StatusCode
) -> None:
    server.failures = [failure]
    clock = Clock()
    with pytest.raises(EdgewrightError):
        ask(kind, server.target, "classify", "x", clock=clock)
    assert (len(server.requests), clock.slept) == (1, [])


def test_retries_end(kind: str, server: FakeServer) -> None:
    server.failures = [NotReadyError(f"attempt {number}") for number in range(9)]
    with pytest.raises(NotReadyError, match="attempt 2"):
        ask(kind, server.target, "classify", "x", clock=Clock(), retries=2)
    assert len(server.requests) == 3


def test_the_deadline_covers_all_requests_of_a_list(kind: str, server: FakeServer) -> None:
    clock = Clock()
    server.failures = [OverloadedError("full", retry_after_s=3.0)]
    ask(kind, server.target, "classify", ["x"] * 70, clock=clock, timeout_s=20.0)
    assert len(server.requests) == 3
    limits = (20.5, 17.5, 17.5)  # the second and third attempt come after three seconds' sleep
    for left, limit in zip(server.time_remaining_s, limits, strict=True):
        assert left is not None
        assert left < limit


class Failure(grpc.RpcError):
    """A failed call, as the calls see it."""

    def __init__(self, error: EdgewrightError) -> None:
        self._status: Any = to_status(error)

    def code(self) -> grpc.StatusCode:
        return next(code for code in grpc.StatusCode if code.value[0] == self._status.code)

    def details(self) -> str:
        return str(self._status.message)

    def trailing_metadata(self) -> Any:
        return ((STATUS_METADATA_KEY, self._status.SerializeToString()),)


class Cancelled(grpc.RpcError):
    """A call without an answer, cancelled by whoever says ``details``."""

    def __init__(self, details: str) -> None:
        self._details = details

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return ()


def test_what_the_server_dropped_unseen_is_tried_again_and_told_in_words() -> None:
    clock = Clock()
    plan = Calls("host:1", 1, random.Random(0))
    deadline = Deadline.after(10.0, clock)
    steps = plan.unary("ListModels", model_pb2.ListModelsRequest(), deadline)
    next(steps)
    assert isinstance(steps.throw(Cancelled("CANCELLED")), Pause)  # as gRPC words it
    assert isinstance(steps.send(None), Send)
    with pytest.raises(ServiceError, match="host:1 dropped the call unseen"):
        steps.throw(Cancelled("CANCELLED"))


def test_what_this_side_cancelled_is_not_tried_again() -> None:
    clock = Clock()
    plan = Calls("host:1", 1, random.Random(0))
    steps = plan.unary("ListModels", model_pb2.ListModelsRequest(), Deadline.after(10.0, clock))
    next(steps)
    with pytest.raises(EdgewrightError, match="Channel closed!"):
        steps.throw(Cancelled("Channel closed!"))


Delays = list[float | None]  # what each attempt meets: UNAVAILABLE, or RetryInfo with seconds


def attempts_of(plan: Calls, delays: Delays, deadline: Deadline, clock: Clock) -> list[float]:
    """Moments at which a call would send, each attempt taking half a second; after ``delays`` it
    would succeed."""
    steps = plan.unary("ListModels", model_pb2.ListModelsRequest(), deadline)
    sent: list[float] = []
    try:
        step = next(steps)
        while len(sent) < len(delays):
            assert isinstance(step, Send)
            assert 0 < step.timeout_s <= deadline.remaining_s()
            sent.append(clock.now)
            clock.now += min(0.5, step.timeout_s)
            delay = delays[len(sent) - 1]
            pause = steps.throw(
                Failure(
                    NotReadyError("no")
                    if delay is None
                    else OverloadedError("full", retry_after_s=delay)
                )
            )
            assert isinstance(pause, Pause)
            clock.sleep(pause.seconds)
            step = steps.send(None)
    except (NotReadyError, OverloadedError, DeadlineError):
        return sent
    return [*sent, clock.now]


@settings(deadline=None)  # a busy machine is no failure
@given(
    delays=st.lists(st.one_of(st.none(), st.floats(0, 10)), max_size=12),
    timeout_s=st.floats(0.01, 30),
    retries=st.integers(0, 8),
    seed=st.integers(0, 99),
)
def test_no_attempt_is_made_past_the_deadline_or_sooner_than_allowed(
    delays: Delays, timeout_s: float, retries: int, seed: int
) -> None:
    clock = Clock()
    start = clock.now
    plan = Calls("host:1", retries, random.Random(seed))
    sent = attempts_of(plan, delays, Deadline.after(timeout_s, clock), clock)
    assert 1 <= len(sent) <= retries + 1
    assert all(moment < start + timeout_s for moment in sent)
    for earlier, later, delay in zip(sent, sent[1:], delays, strict=False):
        assert later - earlier >= 0.5 + (delay or 0) - 1e-6
