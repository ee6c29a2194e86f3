"""Connections to the gRPC port that are too many, silent, or abused."""

from __future__ import annotations

import itertools
import logging
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import trustme

from edgewright.serve import grpc_options

from .conftest import Late, Launch, until
from .processes import FREE_PORTS, Start, classify
from .raw_http2 import (
    ACK,
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    head_of,
)
from .test_tls import Authority

HELLO = PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0)
CLASSIFY = "/edgewright.v1.PredictionService/ClassifyText"
PATIENCE_S = 30  # gRPC itself loses its own after 60
CANCEL = (8).to_bytes(4, "big")


def connect(port: int | None, hello: bytes = b"") -> socket.socket:
    assert port
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(hello)
    return connection


def told(connection: socket.socket) -> bytes:
    """Everything until the server closes; TimeoutError where it does not."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def until_told(connection: socket.socket, part: bytes) -> None:
    """Take what the server says up to ``part``."""
    said = b""
    while part not in said:
        more = connection.recv(65536)
        assert more, said[-1000:]
        said += more


def send(connection: socket.socket, frames: Iterator[bytes]) -> None:
    """As many of them as the server takes before it closes."""
    try:
        for each in frames:
            connection.sendall(each)
    except (ConnectionError, TimeoutError):
        pass


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing is at ERROR in the log afterwards."""
    with caplog.at_level(logging.WARNING):
        yield
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]


def test_connections_are_bounded_and_those_that_close_make_room(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_options, "MAX_CONNECTIONS", 4)
    running = launch(admin_port=0)
    for port in (running.server.port, running.server.admin_port):
        with ExitStack() as opened:
            for _ in range(4):
                first = opened.enter_context(connect(port, HELLO))
                assert first.recv(9)  # the server's own SETTINGS
            with connect(port) as beyond:
                assert told(beyond) == b""
        until(partial(admitted, port))


def admitted(port: int) -> bool:
    with connect(port, HELLO) as connection:
        try:
            return bool(connection.recv(9))
        except ConnectionError:
            return False


@pytest.mark.parametrize(
    "beginning", [b"", PREFACE[:10], b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]
)
@pytest.mark.parametrize("secure", [False, True])
def test_a_handshake_that_does_not_end_is_given_up(
    launch: Launch,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    beginning: bytes,
    secure: bool,
) -> None:
    monkeypatch.setattr(grpc_options, "HANDSHAKE_MS", 300)
    files = Authority(tmp_path, trustme.CA()).files() if secure else {}
    running = launch(load=False, **files)
    with connect(running.server.port, beginning) as silent:
        silent.settimeout(PATIENCE_S)
        told(silent)


def test_tls_that_is_all_the_client_ever_says_is_given_up(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(grpc_options, "HANDSHAKE_MS", 300)
    running = launch(load=False, **Authority(tmp_path, trustme.CA()).files())
    context = ssl._create_unverified_context()
    context.set_alpn_protocols(["h2"])
    shaken: list[ssl.SSLSocket] = []

    def hands_are_shaken() -> bool:
        connection = connect(running.server.port)
        try:
            shaken.append(context.wrap_socket(connection, server_hostname="localhost"))
        except OSError:  # it was given up for being slow itself
            connection.close()
        return bool(shaken)

    until(hands_are_shaken)
    with shaken[0] as silent:
        silent.settimeout(PATIENCE_S)
        told(silent)


@pytest.mark.usefixtures("quiet")
def test_who_pings_without_end_is_sent_away(launch: Launch) -> None:
    running = launch()
    with connect(running.server.port, HELLO) as pinging:
        send(pinging, itertools.repeat(frame(PING, 0, 0, b"12345678"), 10_000))
        answer = told(pinging)
    assert b"too_many_pings" in answer
    assert running.classify("bank").classifications


@pytest.mark.usefixtures("quiet")
def test_calls_that_are_reset_at_once_take_nobody_s_room(launch: Launch) -> None:
    running = launch()
    running.classify("bank")
    head = head_of(CLASSIFY)
    resets = (
        frame(HEADERS, END_HEADERS, stream, head) + frame(RST_STREAM, 0, stream, CANCEL)
        for stream in range(1, 20_001, 2)
    )
    with connect(running.server.port, HELLO) as resetting, Late(running.loop):
        send(resetting, resets)
        resetting.sendall(frame(PING, 0, 0, b"the last"))
        until_told(resetting, b"the last")  # all have been taken in
        call = running.predictions.ClassifyText.future(running.request("bank"), timeout=60)
        time.sleep(0.2)  # it has been sent
    assert call.result().classifications
    until(lambda: running.server.in_flight == 0)
    assert running.server.batcher.queue.rows == 0


def test_a_head_that_never_ends_is_not_kept(start: Start, repository: Path) -> None:
    process = start(str(repository), *FREE_PORTS, "--json")
    port = process.ready()["port"]
    before = resident_mib(process.popen.pid)
    piece = frame(CONTINUATION, 0, 1, b"\0\4name\x7f\x81\x01" + b"v" * 256)
    with connect(port, HELLO + frame(HEADERS, END_STREAM, 1, head_of(CLASSIFY))) as endless:
        send(endless, itertools.repeat(piece, 200_000))  # 53 MB
        assert classify(port).classifications
    assert resident_mib(process.popen.pid) - before < 32
    process.popen.terminate()
    code, _, err = process.wait()
    assert (code, "ERROR" in err) == (0, False)


def resident_mib(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20


def test_headers_that_are_no_text_are_no_errors_of_the_server_s(
    start: Start, repository: Path
) -> None:
    process = start(str(repository), *FREE_PORTS, "--json")
    port = process.ready()["port"]
    head = head_of(CLASSIFY) + b"\0\4name\4\xff\xfe\xfd\xfc"
    with connect(port, HELLO) as odd:
        send(odd, (frame(HEADERS, END_HEADERS, stream, head) for stream in range(1, 41, 2)))
        assert classify(port).classifications
    process.popen.terminate()
    code, _, err = process.wait()
    assert (code, err) == (0, "")


def test_a_path_that_is_no_text_ends_no_server(start: Start, repository: Path) -> None:
    process = start(str(repository), *FREE_PORTS, "--admin-port", "0", "--json")
    told_ports = process.ready()
    head = head_of("/\xff\xfe/x".encode("latin-1"))
    for port in (told_ports["port"], told_ports["admin_port"]):
        with connect(port, HELLO + frame(HEADERS, END_HEADERS | END_STREAM, 1, head)) as odd:
            until_told(odd, b"there is no method")
        assert admitted(port)
    assert classify(told_ports["port"]).classifications
    process.popen.terminate()
    code, _, err = process.wait()
    assert (code, err) == (0, "")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 100_000,
        b"\0" * 100_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/models/news:classify HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x55" * 600,
        HELLO + frame(0xFE, 0xFF, 0x7FFFFFFF, b"x" * 100),
        HELLO + frame(HEADERS, END_HEADERS, 2, b"\xff" * 50),
        HELLO + b"\xff\xff\xff" + b"\0" * 6 + b"x" * 100_000,
        HELLO + frame(SETTINGS, 0, 0, b"\0\5" + b"\0\0\0\0") * 50,
    ],
)
def test_what_is_no_grpc_ends_and_troubles_nobody(launch: Launch, garbage: bytes) -> None:
    running = launch()
    with connect(running.server.port) as connection:
        send(connection, iter([garbage]))
        with suppress(OSError):  # it has been closed already
            connection.shutdown(socket.SHUT_WR)
        told(connection)
    assert running.classify("bank").classifications
