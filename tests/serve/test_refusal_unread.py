"""What is refused before it is read, and what gRPC holds before the server sees it."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from edgewright.oip import inference_pb2
from edgewright.rpc_errors import STATUS_METADATA_KEY
from edgewright.serve import grpc_options, rpc_server
from edgewright.serve.call_edge import QUEUED
from edgewright.serve.grpc_options import MAX_CALLS_PER_CONNECTION, MAX_UNSEEN_CALLS
from edgewright.serve.rpc_server import MOST_AHEAD
from edgewright.v1 import prediction_pb2

from .conftest import Gate, Late, Launch, Running, until
from .full_queue import CLASSIFY, FullQueue

INFER = "/inference.GRPCInferenceService/ModelInfer"
NO_MESSAGE = b"\xff\xff"


def sent(running: Running, path: str, message: bytes = NO_MESSAGE) -> grpc.RpcError:
    """How the server refused the call."""
    with pytest.raises(grpc.RpcError) as refusal:
        running.channel.unary_unary(path)(message, timeout=60)
    return refusal.value


@pytest.mark.parametrize("path", [CLASSIFY, INFER])
def test_where_the_queue_has_room_for_nobody_calls_are_refused_unread(
    launch: Launch, gate: Callable[[], Gate], path: str
) -> None:
    full = FullQueue(launch, gate)
    running = full.running
    error = sent(running, path)
    trailers = dict(error.trailing_metadata())
    status = Status.FromString(trailers[STATUS_METADATA_KEY])
    info, retry = ErrorInfo(), RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 rows wait and 2 may" in error.details()
    assert info.reason == "QUEUE_FULL"
    assert retry.retry_delay.ToNanoseconds() > 0
    assert trailers["x-request-id"]
    assert running.metric("edgewright_rejected_total", reason="QUEUE_FULL") == 1
    refused = {"code": "RESOURCE_EXHAUSTED", "method": path.removeprefix("/")}
    until(lambda: running.metric("edgewright_requests_total", **refused) == 1)
    full.answer()
    until(lambda: running.server.in_flight == 0)
    assert sent(running, path).code() is grpc.StatusCode.INVALID_ARGUMENT  # it is read again


def test_probes_and_descriptions_are_answered_all_the_same(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    full = FullQueue(launch, gate)
    running = full.running
    live = running.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
    assert inference_pb2.ServerLiveResponse.FromString(live(b"", timeout=60)).live
    full.answer()


def test_who_may_not_call_is_told_that_rather_than_to_come_back(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    full = FullQueue(launch, gate, max_calls_per_caller=1)
    assert "calls in flight" in sent(full.running, CLASSIFY).details()
    full.answer()


def test_every_unary_method_that_computes_is_one_of_them() -> None:
    service = prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"]
    unary = {
        f"/{service.full_name}/{method.name}"
        for method in service.methods
        if not (method.client_streaming or method.server_streaming)
    }
    assert unary | {INFER} == QUEUED


def test_a_late_event_loop_costs_no_caller_within_the_limits_its_answer(launch: Launch) -> None:
    """More calls than gRPC would hold; those beyond the limit of a connection wait in the client."""
    running = launch(max_wait_s=600.0)
    running.classify("bank")  # the connection is there, and the client knows its limit
    request = running.request("bank")
    with Late(running.loop):
        calls = [
            running.predictions.ClassifyText.future(request, timeout=600)
            for _ in range(MAX_UNSEEN_CALLS[1])
        ]
    assert Counter(call.code() for call in calls) == {grpc.StatusCode.OK: len(calls)}


def test_no_call_waits_unseen_for_longer_than_any_may_wait(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_options, "LEAST_UNSEEN_S", 1)
    running = launch(max_wait_s=0.5)  # gRPC has whole seconds
    request = running.request("bank")
    running.classify("bank")
    with Late(running.loop):
        calls = [
            running.predictions.ClassifyText.future(request, timeout=60)
            for _ in range(MAX_CALLS_PER_CONNECTION)
        ]
        until(lambda: len(running.server._rpc._todo) >= rpc_server._AHEAD)  # they have come
        time.sleep(2.5)
    codes = Counter(call.code() for call in calls)
    # The first were handed to the loop before it was late; what gRPC still has, it drops.
    assert codes[grpc.StatusCode.CANCELLED] >= len(calls) - MOST_AHEAD
    assert codes[grpc.StatusCode.OK]  # not all, where the queue itself is too slow for them
    dropped = (call for call in calls if call.code() is grpc.StatusCode.CANCELLED)
    assert {call.details() for call in dropped} == {"CANCELLED"}
    assert running.classify("bank").classifications


def test_what_waits_unseen_is_bounded(launch: Launch) -> None:
    """Beyond both limits gRPC cancels calls: the memory is worth more than their answers."""
    running = launch(max_wait_s=600.0)
    request = running.request("bank").SerializeToString()
    with ExitStack() as open_channels:
        channels = [
            open_channels.enter_context(
                grpc.insecure_channel(
                    f"127.0.0.1:{running.server.port}",
                    options=[("grpc.use_local_subchannel_pool", 1)],
                )
            )
            for _ in range((MAX_UNSEEN_CALLS[1] + MOST_AHEAD) // MAX_CALLS_PER_CONNECTION + 1)
        ]
        methods = [channel.unary_unary(CLASSIFY) for channel in channels]
        for method in methods:
            method(request, timeout=60)
        with Late(running.loop):
            calls = [
                method.future(request, timeout=600)
                for method in itertools.islice(
                    itertools.cycle(methods), len(methods) * MAX_CALLS_PER_CONNECTION
                )
            ]
            too_many = len(calls) - MAX_UNSEEN_CALLS[1] - MOST_AHEAD
            until(lambda: sum(call.done() for call in calls) >= too_many)
        codes = Counter(call.code() for call in calls)
    assert codes[grpc.StatusCode.CANCELLED] >= too_many
    dropped = (call for call in calls if call.code() is grpc.StatusCode.CANCELLED)
    assert {call.details() for call in dropped} == {"CANCELLED"}  # by which our client knows it
    assert codes[grpc.StatusCode.OK]
