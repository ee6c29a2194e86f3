"""Faults of the world around a server: its clock, and clients that vanish or never read.

Bad input is tested where it comes in: test_server, test_oip_service, test_http_api; a model that
gives no numbers in test_server and test_alerts; a full disk in test_feedback_service.
"""

from __future__ import annotations

import ast
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edgewright.serve

from .conftest import Gate, Launch, until

TEN_YEARS_NS = 10 * 365 * 86_400 * 10**9
# Who tells the time of day to people or to a store; all others measure by time.monotonic.
TELL_THE_TIME = {
    "feedback_checks.py",  # when an entry was received
    "instruments.py",  # when a model was loaded
    "prediction_ids.py",  # ids in the order of their giving
    "prediction_log.py",  # when a prediction was made
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
