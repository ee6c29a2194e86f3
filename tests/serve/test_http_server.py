"""HTTP that is slow, too large or none at all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import ssl
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme

from edgewright.serve import http_server
from edgewright.serve.http_messages import Request, Response
from edgewright.serve.http_server import HttpServer

from .conftest import LoopThread, until
from .raw_http import Answers, connect, post, read_all, tell

LIMIT = 1000


@pytest.fixture
def answers() -> Answers:
    return Answers()


Serve = Callable[..., HttpServer]


@pytest.fixture
def serve(loop: LoopThread, answers: Answers) -> Iterator[Serve]:
    """Starts servers, which are patient unless they are told otherwise."""
    made: list[HttpServer] = []

    async def build(**options: Any) -> HttpServer:
        patient = {"head_s": 600.0, "body_s": 600.0}
        server = HttpServer("127.0.0.1", 0, answers, max_body_bytes=LIMIT, **{**patient, **options})
        await server.start()
        return server

    def start(**options: Any) -> HttpServer:
        made.append(loop.run(build(**options)))
        return made[-1]

    yield start
    for each in made:
        loop.run(each.stop())


@pytest.fixture
def server(serve: Serve) -> HttpServer:
    return serve()


def test_requests_follow_each_other_on_a_connection_even_ahead_of_time(server: HttpServer) -> None:
    told = tell(server, post(b"ab") + post(b"c", "Connection: close\r\n", "/y?q=1"))
    assert told.count(b"HTTP/1.1 200") == 2
    assert b'["POST", "/x", 2]' in told
    assert told.endswith(b'["POST", "/y", 1]')


def test_a_head_has_no_body(server: HttpServer) -> None:
    told = tell(server, b"HEAD /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"200" in told
    assert told.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://x:1/y?q=http://z", "/y"),
        ("HTTPS://x", "/"),
        ("http://x?q", "/"),
        ("/http://x", None),
    ],
)
def test_a_target_may_name_the_server_as_well(
    server: HttpServer, answers: Answers, target: str, path: str | None
) -> None:
    tell(server, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answers.asked[0].path == (path or target)


def test_a_header_in_several_lines_is_one_and_none_of_them_is_lost(
    server: HttpServer, answers: Answers
) -> None:
    tell(server, post(b"", "A: 1\r\nConnection: close\r\nB: 2\r\na: 3,4\r\nA: 5\r\n"))
    assert answers.asked[0].headers["a"] == "1, 3,4, 5"
    assert answers.asked[0].headers["b"] == "2"


def test_chunks_and_expectations_are_understood(server: HttpServer) -> None:
    head = "POST /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
    told = tell(server, head.encode() + b"\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert told.endswith(b'["POST", "/x", 5]')
    with connect(server) as connection:
        connection.sendall(
            post(b"", "Expect: 100-continue\r\n")[:-4].replace(b": 0", b": 2") + b"\r\n\r\n"
        )
        assert b"100" in connection.recv(1000)
        connection.sendall(b"ab")
        assert b'["POST", "/x", 2]' in connection.recv(1000)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (post(b"x" * (LIMIT + 1)), 413),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
         b"7d0\r\n" + b"x" * 2000 + b"\r\n", 413),
        (b"GET /" + b"x" * 20_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00" * 9 + b"\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
         b"0\r\n\r\nGET /x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"GET /x HTTP/1.1\r\nHost: x\r\n" + b"A: %s\r\n" % (b"b" * 100) * 200 + b"\r\n", 431),
        (post(b"x", "Content-Encoding: gzip\r\n"), 415),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_refused_and_the_connection_closed(
    server: HttpServer, data: bytes, status: int
) -> None:
    head, _, body = tell(server, data).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"Content-Type: application/json" in head
    assert json.loads(body)["reason"] == "INPUT_INVALID"
    assert json.loads(body)["error"]
    assert tell(server, post(b"", "Connection: close\r\n")).startswith(b"HTTP/1.1 200")


def test_a_body_that_does_not_come_is_told_so(serve: Serve) -> None:
    half = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"
    told = tell(serve(body_s=0.3), half)
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b'"reason": "DEADLINE"' in told


@pytest.mark.parametrize("said", [b"", b"POST /x HT"])
def test_a_client_that_says_no_more_is_let_go(serve: Serve, said: bytes) -> None:
    with connect(serve(head_s=0.3)) as silent:
        with contextlib.suppress(ConnectionError):  # it has been let go before it could say that
            silent.sendall(said)
        assert read_all(silent) == b""


def test_a_client_that_drips_is_let_go_all_the_same(serve: Serve) -> None:
    with connect(serve(head_s=1.0)) as connection:
        connection.settimeout(0.05)
        told = b""
        for _ in range(600):  # each byte comes in time; the head does not
            with contextlib.suppress(OSError):
                connection.sendall(b"G")
            try:
                told = connection.recv(100)
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("it was never let go")
    assert told == b""


def test_a_client_that_leaves_ends_its_call(server: HttpServer, answers: Answers) -> None:
    with connect(server) as connection:
        connection.sendall(post(b"", path="/wait"))
        until(lambda: answers.waiting == 1)
    until(lambda: answers.left == 1)


def test_more_bytes_than_are_held_at_once_are_refused(
    server: HttpServer, answers: Answers, loop: LoopThread
) -> None:
    waiting = [connect(server) for _ in range(4)]
    for connection in waiting:
        connection.sendall(post(b"x" * LIMIT, path="/wait"))
    until(lambda: answers.waiting == 4)
    told = tell(server, post(b"x"))
    assert told.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in told
    assert b'"reason": "QUEUE_FULL"' in told
    loop.loop.call_soon_threadsafe(answers.go.set)
    assert all(b"200" in connection.recv(1000) for connection in waiting)
    for connection in waiting:
        connection.close()
    until(lambda: tell(server, post(b"x", "Connection: close\r\n")).startswith(b"HTTP/1.1 200"))


def test_connections_are_bounded(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 1)
    first: Callable[[], bytes] = lambda: tell(server, post(b"", "Connection: close\r\n"))  # noqa: E731

    def crowded() -> bool:
        with connect(server) as silent:
            silent.sendall(b"GET ")
            told = first()
            return told.startswith(b"HTTP/1.1 503 ") and b'"reason": "QUEUE_FULL"' in told

    assert crowded()
    until(lambda: first().startswith(b"HTTP/1.1 200"))


def test_connections_count_before_their_handshake(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever connects and says nothing holds what TLS needs, however often he does."""
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", 1)
    authority = trustme.CA()
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    authority.configure_trust(theirs)

    async def build() -> HttpServer:
        made = HttpServer(
            "127.0.0.1", 0, Answers(), max_body_bytes=LIMIT, context=lambda: ours, head_s=600.0
        )
        await made.start()
        return made

    def answered() -> bool:
        try:
            with theirs.wrap_socket(connect(made), server_hostname="127.0.0.1") as connection:
                connection.sendall(post(b"", "Connection: close\r\n"))
                return read_all(connection).startswith(b"HTTP/1.1 200")
        except OSError:  # closed before the handshake
            return False

    made = loop.run(build())
    try:
        with connect(made):  # the first of all, so that no other counts that has just left
            assert not answered()
        until(answered)
    finally:
        loop.run(made.stop())


def test_a_connection_that_finds_no_free_file_is_taken_in_later(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http_server, "_AGAIN_S", 0.01)
    with socket.socket() as early, socket.socket() as late:
        for each in (early, late):
            each.settimeout(60)
        early.connect(("127.0.0.1", server.port))
        early.sendall(post(b""))
        assert b"200" in early.recv(1000)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        first_free = os.dup(0)
        os.close(first_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, limits[1]))
        try:
            late.connect(("127.0.0.1", server.port))
            late.sendall(post(b""))
            until(lambda: "no connection to --metrics-port can be taken" in caplog.text)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert b"200" in late.recv(1000)


def test_a_body_is_held_once_while_it_is_answered(loop: LoopThread) -> None:
    size, held = 8 << 20, list[int]()

    async def weigh(request: Request) -> Response:
        held.append(tracemalloc.get_traced_memory()[0])
        return Response(200, "text/plain", b"")

    async def exchange() -> None:
        server = HttpServer("127.0.0.1", 0, weigh, max_body_bytes=size)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for each in (bytes(1), bytes(size)):  # the first shows what is held anyway
            writer.write(post(each))
            await writer.drain()
            await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await server.stop()

    tracemalloc.start()
    try:
        loop.run(exchange())
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 1.5 * size
