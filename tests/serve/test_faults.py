"""Faults of the world around a server: its clock, and clients that vanish or never read.

The others are tested where they come in:

    wrong dtype, shape, name, count, byte length    test_oip_service, test_http_api
    unknown model or version, empty batch, 10 MB    test_server, test_oip_service, test_http_api
    bytes that are no UTF-8, unknown fields         test_oip_service, test_http_api, test_fuzz
    corrupt image                                   test_image_decoder, test_bombs, test_classify_stream
    a model that gives NaN                          test_server, test_http_api, test_embed, test_alerts
    a full disk                                     test_feedback_service, test_process_faults,
                                                    test_host_choice (the state folder)
"""

from __future__ import annotations

import ast
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import edgewright.serve
from edgewright.serve import grpc_options, server
from edgewright.serve.classify_stream import MESSAGES_AHEAD
from edgewright.serve.grpc_options import MAX_CALLS_PER_CONNECTION
from edgewright.v1.prediction_pb2 import StreamClassifyRequest, StreamItem

from .conftest import Gate, Launch, Running, until
from .raw_http2 import DeafClient

TEN_YEARS_NS = 10 * 365 * 86_400 * 10**9
# Who tells the time of day to people or to a store; all others measure by time.monotonic.
TELL_THE_TIME = {
    "feedback_checks.py",  # when an entry was received
    "feedback_cli.py",  # how long ago that was, for those who prune
    "follower.py",  # since when a version is asked for that is not loaded yet
    "instruments.py",  # when a model was loaded
    "loader.py",  # since when a load goes on
    "prediction_ids.py",  # ids in the order of their giving
    "prediction_log.py",  # when a prediction was made
    "rpc_call.py",  # how long a deadline is off, which gRPC tells by it
    "tls.py",  # whether a certificate has run out
    "tracing.py",  # when a span began
}


def wall_clocks(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow"):
                yield name


def test_only_those_who_tell_the_time_read_the_wall_clock() -> None:
    sources = Path(edgewright.serve.__file__).parent.glob("*.py")
    assert {file.name for file in sources if list(wall_clocks(file))} == TELL_THE_TIME


def test_a_clock_that_jumps_changes_no_answer_and_repeats_no_id(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = launch()
    now = time.time_ns()
    jumps = iter([now, now - TEN_YEARS_NS, now - TEN_YEARS_NS, now + TEN_YEARS_NS, now])
    monkeypatch.setattr(
        running.server.predictions._predictor._ids, "_clock_ns", lambda: next(jumps)
    )
    found = [running.classify("bank shares", "goal").classifications for _ in range(5)]
    ids = [each.prediction_id for answers in found for each in answers]
    assert len(set(ids)) == 10
    assert ids == sorted(ids)
    assert len({tuple(each.label for each in answers) for answers in found}) == 1


def classify_request(texts: int) -> bytes:
    body = json.dumps({"texts": ["bank"] * texts}).encode()
    head = f"POST /v1/models/news:classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def test_a_client_of_http_that_is_reset_leaves_nothing_behind(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    running = launch(instances=1)
    held = gate()
    first = socket.create_connection(("127.0.0.1", running.server.metrics_port))
    first.sendall(classify_request(1))
    assert held.entered.wait(30)
    second = socket.create_connection(("127.0.0.1", running.server.metrics_port))
    second.sendall(classify_request(3))
    until(lambda: running.server.batcher.queue.rows == 4)
    for each in (first, second):  # a reset, as of a killed process whose data was not read
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        each.close()
    until(lambda: running.server.in_flight == 0)
    assert running.server.batcher.queue.rows == 0
    held.open.set()
    running.classify("bank", "goal")
    assert held.runs == [1, 2]  # what waited of those who left was not computed


def test_a_client_of_http_that_never_reads_holds_up_nobody(launch: Launch) -> None:
    running = launch()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", running.server.metrics_port))
        deaf.settimeout(3)
        request, sent = classify_request(250), 0
        try:
            while sent < 64 << 20:
                sent += deaf.send(request)
        except TimeoutError:
            pass
        assert sent < 64 << 20  # it is not read on while its answers are not taken
        assert len(running.classify("bank").classifications) == 1
        until(lambda: running.server.in_flight == 0)
        running.loop.run(running.server.drain())


CLASSIFY_TEXT = "/edgewright.v1.PredictionService/ClassifyText"
STREAM_CLASSIFY = "/edgewright.v1.PredictionService/StreamClassify"


@pytest.fixture
def deaf() -> Iterator[Callable[[Running], DeafClient]]:
    """Makes gRPC clients that never read."""
    clients: list[DeafClient] = []

    def make(running: Running) -> DeafClient:
        clients.append(DeafClient(running.server.port))
        return clients[-1]

    yield make
    for each in clients:
        each.close()


def answered(running: Running) -> float:
    return running.metric("edgewright_predictions_total")


def test_answers_that_a_client_of_grpc_never_takes_hold_up_nobody(
    launch: Launch, deaf: Callable[[Running], DeafClient]
) -> None:
    running = launch(grace_s=1000.0)
    client = deaf(running)
    for _ in range(MAX_CALLS_PER_CONNECTION):
        client.call(CLASSIFY_TEXT, [running.request("bank")])
    until(lambda: answered(running) == MAX_CALLS_PER_CONNECTION)
    until(lambda: running.server.in_flight == 0)
    assert running.server.batcher.queue.rows == 0
    for _ in range(50):  # the memory of those not taken bounds what is taken in
        client.call(CLASSIFY_TEXT, [running.request("bank")])
        assert running.classify("bank").classifications
    assert answered(running) == MAX_CALLS_PER_CONNECTION + 50
    assert running.loop.run(running.server.drain())


def test_a_stream_that_a_client_never_reads_is_not_read_on_and_costs_a_drain_no_grace(
    launch: Launch,
    deaf: Callable[[Running], DeafClient],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server, "_STUCK_S", 0.1)
    running = launch(grace_s=1000.0)
    message = StreamClassifyRequest(items=[StreamItem(text="bank")])
    deaf(running).call(STREAM_CLASSIFY, [message] * 1000)
    until(lambda: answered(running) > 0)
    for _ in range(50):
        assert running.classify("goal").classifications
    # What is being sent, what is ahead of it, and what was asked for beside.
    assert answered(running) - 50 <= MESSAGES_AHEAD + 2
    assert running.loop.run(running.server.drain())
    assert running.server.in_flight == 0
    assert (
        "1 calls were ended whose callers do not send a message, or take an answer" in caplog.text
    )
    assert running.metric("edgewright_requests_total", code="CANCELLED") == 1


def test_a_client_of_grpc_that_vanishes_without_a_word_is_found_by_a_ping(
    launch: Launch, deaf: Callable[[Running], DeafClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_options, "PING_AFTER_MS", 1000)
    monkeypatch.setattr(grpc_options, "PING_TIMEOUT_MS", 1000)
    running = launch()
    client = deaf(running)
    message = StreamClassifyRequest(items=[StreamItem(text="bank")])
    client.call(STREAM_CLASSIFY, [message], last=False)
    with suppress(ConnectionError):  # where this machine was too slow to answer even that
        client.answer_ping()  # gRPC's own, after data has come
    client.wait_until_closed()
    until(lambda: running.metric("edgewright_requests_total", code="CANCELLED") == 1)
    assert running.server.in_flight == 0
