"""Clients that leave while they are answered, and those that only send nothing more."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from edgewright.serve import http_connection
from edgewright.serve.event_loop import new_event_loop
from edgewright.serve.http_connection import MAX_HEAD_BYTES, Connection
from edgewright.serve.http_messages import Response
from edgewright.serve.http_server import HttpServer

from .conftest import LoopThread, until
from .raw_http import Answers, connect, post, read_all

GO_ON = b"HTTP/1.1 100 \r\n\r\n"
WAIT = post(b"", path="/wait")
OLD = b"POST /wait HTTP/1.0\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture(params=[new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Iterator[LoopThread]:
    thread = LoopThread(request.param)
    yield thread
    thread.close()


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def server(loop: LoopThread, answers: Answers) -> Iterator[HttpServer]:
    async def build() -> HttpServer:
        made = HttpServer("127.0.0.1", 0, answers, max_body_bytes=1000)
        await made.start()
        return made

    made = loop.run(build())
    yield made
    until(lambda: not made._connections)
    loop.run(made.stop())


def test_a_client_that_sends_nothing_more_gets_its_answers(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "DOUBT_S", 600.0)
    with connect(server) as connection:
        connection.sendall(post(b"ab") + post(b"c"))
        connection.shutdown(socket.SHUT_WR)
        told = read_all(connection)
    assert told.startswith(b"HTTP/1.1 200")
    assert told.count(b"HTTP/1.1 200") == told.count(b"HTTP/1.1 ") == 2
    assert told.endswith(b'["POST", "/x", 1]')


def test_one_that_waits_for_its_answer_is_told_meanwhile_to_go_on(
    server: HttpServer, answers: Answers, loop: LoopThread
) -> None:
    with connect(server) as connection:
        connection.sendall(WAIT)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(len(GO_ON), socket.MSG_WAITALL) == GO_ON
        assert not answers.left
        loop.loop.call_soon_threadsafe(answers.go.set)
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_one_of_http_1_0_which_knows_no_such_answer_is_told_nothing(
    server: HttpServer, answers: Answers, loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    monkeypatch.setattr(Connection, "_is_reset", lambda _: looked.append(True))  # and not reset
    with connect(server) as connection:
        connection.sendall(OLD)
        connection.shutdown(socket.SHUT_WR)
        until(lambda: bool(looked))
        loop.loop.call_soon_threadsafe(answers.go.set)
        assert read_all(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("ahead", [b"", b"\r\n", WAIT], ids=["nothing", "newline", "request"])
def test_a_client_that_leaves_ends_its_call_whatever_it_sent_ahead(
    server: HttpServer, answers: Answers, ahead: bytes
) -> None:
    with connect(server) as connection:
        connection.sendall(WAIT)
        until(lambda: answers.waiting == 1)
        connection.sendall(ahead)
    until(lambda: answers.left == 1)
    assert answers.waiting == 1


def test_so_does_one_that_closes_what_it_had_closed_by_half(
    server: HttpServer, answers: Answers
) -> None:
    with connect(server) as connection:
        connection.sendall(WAIT)
        connection.shutdown(socket.SHUT_WR)
        until(lambda: answers.waiting == 1)
    until(lambda: answers.left == 1)


@pytest.mark.parametrize("ahead", [0, 8 * MAX_HEAD_BYTES])
@pytest.mark.parametrize("request_bytes", [WAIT, OLD], ids=["1.1", "1.0"])
def test_a_reset_ends_the_call_however_much_is_unread(
    server: HttpServer, answers: Answers, request_bytes: bytes, ahead: int
) -> None:
    with connect(server) as connection:
        connection.sendall(request_bytes + bytes(ahead))
        until(lambda: answers.waiting == 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: answers.left == 1)


async def turns() -> Response:
    """An answer, once the loop has done what it could do meanwhile."""
    for _ in range(100):
        await asyncio.sleep(0)
    return Response(200, "text/plain", b"")


@pytest.mark.parametrize("method", ["respond", "refuse", "goes_on"])
def test_an_answer_to_a_client_that_has_left_meanwhile_is_an_ordinary_error(
    loop: LoopThread, method: str
) -> None:
    async def answer() -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        here = asyncio.get_running_loop()
        plain, _ = await here.connect_accepted_socket(lambda: protocol, ours)
        writer = asyncio.StreamWriter(plain, protocol, reader, here)
        connection = Connection(reader, writer, plain)
        theirs.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await connection.next_event()
        if method == "goes_on":
            await connection.respond(await turns(), bare=False)
        connection.abort()
        told = await turns()
        if method == "respond":
            with pytest.raises(OSError):  # noqa: PT011 -- any of them ends the connection
                await connection.respond(told, bare=False)
        elif method == "refuse":
            await connection.refuse(told)
        else:
            assert not await connection.goes_on()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        loop.run(answer())


def test_what_comes_ahead_stays_unread_beyond_a_head() -> None:
    async def unread() -> int:
        reader, plain = asyncio.StreamReader(), Mock()
        plain.is_closing.return_value = False
        plain.get_extra_info.return_value = ours
        connection = Connection(reader, Mock(get_extra_info=lambda _: None), plain)
        reader.feed_data(bytes(10 * MAX_HEAD_BYTES))
        await connection.while_connected(turns())
        reader.feed_eof()
        return len(await reader.read())

    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert asyncio.run(unread()) == 9 * MAX_HEAD_BYTES
