"""HTTPS on uvloop and on Python's own loop: what is sent, the system has; then others may follow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import trustme

from edgewright.serve import http_connection, http_server, http_tls
from edgewright.serve.event_loop import new_event_loop
from edgewright.serve.http_messages import Request, Response
from edgewright.serve.http_server import HttpServer
from edgewright.serve.transfers import Transfers

from .conftest import LoopThread, until

LARGE = 16 << 20  # bytes, more than the system holds
REQUEST = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(params=[new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Iterator[LoopThread]:
    thread = LoopThread(request.param)
    yield thread
    thread.close()


@dataclass
class Https:
    """A server whose answers have ``size`` bytes; it is bound, and does not accept yet."""

    loop: LoopThread
    ours: ssl.SSLContext
    theirs: ssl.SSLContext
    size: int = 2
    holds: bool = False  # its answers for ever
    asked: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)
    transfers: Transfers = field(default_factory=Transfers)

    def __post_init__(self) -> None:
        self.server = self.loop.run(self._made())

    async def _made(self) -> HttpServer:
        return HttpServer(
            "127.0.0.1",
            0,
            self._answer,
            max_body_bytes=1000,
            context=lambda: self.ours,
            transfers=self.transfers,
            head_s=600.0,
        )

    async def _answer(self, _request: Request) -> Response:
        self.asked.set()
        try:
            while self.holds:
                await asyncio.sleep(0.01)
        finally:
            self.left.set()
        return Response(200, "text/plain", bytes(self.size))

    def start(self) -> None:
        self.loop.run(self.server.start())

    def connect(self) -> ssl.SSLSocket:
        """A connection before its handshake, by which little is taken at once."""
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.settimeout(60)
        plain.connect(("127.0.0.1", self.server.port))
        return self.theirs.wrap_socket(
            plain,
            server_hostname="127.0.0.1",
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,  # an end that is not told is an error
        )

    async def turns(self) -> None:
        """Let the loop do what it can do at once."""
        for _ in range(100):
            await asyncio.sleep(0)

    async def stop_once_sent(self) -> None:
        while self.transfers:
            await asyncio.sleep(0.01)
        await self.server.stop()


@pytest.fixture
def https(loop: LoopThread) -> Iterator[Https]:
    authority = trustme.CA()
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    authority.configure_trust(theirs)
    made = Https(loop, ours, theirs)
    yield made
    loop.run(made.server.stop())


def hello(client: ssl.SSLSocket) -> None:
    """Send the client's first words, and do not wait for the server's."""
    client.setblocking(False)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    client.settimeout(60)


def test_an_answer_is_being_sent_until_the_system_has_all_of_it(https: Https) -> None:
    https.size = LARGE
    https.start()
    with https.connect() as client, ThreadPoolExecutor(1) as pool:
        client.sendall(REQUEST)
        assert https.asked.wait(60)
        https.loop.run(https.turns())
        assert len(https.transfers) == 1
        stopped = pool.submit(https.loop.run, https.stop_once_sent())
        with client.makefile("rb") as answer:
            while answer.readline() != b"\r\n":
                pass
            assert len(answer.read(LARGE)) == LARGE
        stopped.result()


def test_what_was_taken_is_not_waited_for(https: Https, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "ANSWER_S", 600.0)
    https.start()
    with https.connect() as client:
        client.sendall(REQUEST)
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        until(lambda: not https.transfers)
        client.sendall(REQUEST)
        until(lambda: not https.transfers)


LAST = b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
TOO_LARGE = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" + bytes(2_000_000)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [(LAST, b"200"), (LAST + bytes(500_000), b"200"), (TOO_LARGE, b"413")],
    ids=["read", "more-than-read", "unread"],
)
def test_the_end_is_told_as_soon_as_the_answer_is_sent(
    https: Https, monkeypatch: pytest.MonkeyPatch, request_bytes: bytes, status: bytes
) -> None:
    monkeypatch.setattr(http_connection, "FAREWELL_S", 600.0)
    https.start()
    with https.connect() as client:
        client.sendall(request_bytes)
        with client.makefile("rb") as answer:
            assert answer.read().split()[1] == status
    until(lambda: not https.server._connections)


def test_who_does_not_leave_is_let_go(https: Https, monkeypatch: pytest.MonkeyPatch) -> None:
    """By us: that TLS would let him go, too, is left out."""
    monkeypatch.setattr(http_connection, "FAREWELL_S", 0.1)
    monkeypatch.setattr(http_tls, "FAREWELL_S", 600.0)
    https.start()
    with https.connect() as client:
        client.sendall(LAST)
        until(lambda: https.asked.is_set() and not https.server._connections)


def test_clients_may_speak_before_they_are_taken_in_or_after(https: Https) -> None:
    with https.connect() as early, https.connect() as late:
        hello(early)
        https.start()
        for client in (early, late):
            client.do_handshake()
            client.sendall(REQUEST)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
            until(lambda: len(https.server._connections) == 2)


def test_who_leaves_in_the_handshake_leaves_nothing(
    https: Https, caplog: pytest.LogCaptureFixture
) -> None:
    clients = [https.connect() for _ in range(6)]
    for client in clients[:3]:
        hello(client)
    https.start()
    until(lambda: len(https.server._connections) == len(clients))
    for number, client in enumerate(clients):
        if number % 2:  # by a reset
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    until(lambda: not https.server._connections)
    assert caplog.records == []


def test_a_client_that_says_farewell_ends_its_call_without_a_doubt(
    https: Https, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_connection, "DOUBT_S", 600.0)
    https.holds = True
    https.start()
    with https.connect() as client:
        client.sendall(REQUEST)
        assert https.asked.wait(60)
        client.unwrap()  # the connection beneath stays open
        assert https.left.wait(60)
    until(lambda: not https.server._connections)


def test_who_leaves_as_the_handshake_ends_leaves_no_error(
    https: Https, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, tasks = http_server.secured, list[Any]()

    async def left(*arguments: Any) -> Any:
        tasks.append(asyncio.current_task())
        transports = await plain(*arguments)
        transports[1].abort()
        await https.turns()
        return transports

    monkeypatch.setattr(http_server, "secured", left)
    https.start()
    with https.connect() as client, contextlib.suppress(OSError):
        client.do_handshake()
        client.recv(1)
    until(lambda: bool(tasks) and tasks[0].done())
    assert tasks[0].exception() is None
    until(lambda: not https.server._connections)
