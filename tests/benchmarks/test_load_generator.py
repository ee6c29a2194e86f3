"""What the load generator counts is what the server saw; never how fast anything is."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.load import (
    Load,
    LoadGeneratorError,
    LoadResult,
    build_load_generator,
    run_load,
    write_payloads,
)

PATH = "/test.Echo/Call"
MIXED = [b"a" * 80, b"missing", b"c" * 300_000, b"full"]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever, daemon=True)
    thread.start()
    yield running
    running.call_soon_threadsafe(running.stop)
    thread.join(30)
    running.close()


class Echo:
    """Answers every body with itself, some by an error; counts what came."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.seen: Counter[bytes] = Counter()
        self.headers: dict[str, str] = {}
        self.most_at_once = self._at_once = 0
        self._servers: list[Any] = []

    def run(self, awaitable: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result(60)

    @property
    def count(self) -> int:
        return sum(self.seen.values())

    def grpc(self, **options: int) -> str:
        async def start() -> int:
            server = grpc.aio.server(options=[(f"grpc.{k}", v) for k, v in options.items()])
            methods = {
                "Call": grpc.unary_unary_rpc_method_handler(self._answer),
                "Messages": grpc.unary_stream_rpc_method_handler(self._messages),
            }
            service = grpc.method_handlers_generic_handler("test.Echo", methods)
            server.add_generic_rpc_handlers((service,))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            self._servers.append(server)
            return port

        return f"127.0.0.1:{self.run(start())}"

    async def _answer(self, body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.seen[body] += 1
        self.headers = dict(context.invocation_metadata())
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        await asyncio.sleep(0)
        self._at_once -= 1
        if body == b"missing":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        if body == b"full":
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        return body

    async def _messages(self, body: bytes, _context: Any) -> AsyncIterator[bytes]:
        """As many messages as the body says; a unary call has one."""
        self.seen[body] += 1
        for _ in range(int(body)):
            yield body

    def tcp(self, respond: Callable[[bytes, bytes, int], bytes]) -> str:
        """HTTP/1.1; an answer that ends with b"CLOSE" closes the connection after it."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                    size = int(length or 0)
                    body = await reader.readexactly(size)
                    self.seen[body] += 1
                    answer = respond(head, body, self.count)
                    writer.write(answer.removesuffix(b"CLOSE"))
                    await writer.drain()
                    if answer.endswith(b"CLOSE"):
                        return
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        async def start() -> int:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            self._servers.append(server)
            return server.sockets[0].getsockname()[1]

        return f"127.0.0.1:{self.run(start())}"

    def close(self) -> None:
        async def stop() -> None:
            for server in self._servers:
                if isinstance(server, grpc.aio.Server):
                    await server.stop(None)
                else:
                    server.close()
                    await server.wait_closed()

        self.run(stop())


@pytest.fixture
def echo(loop: asyncio.AbstractEventLoop) -> Iterator[Echo]:
    server = Echo(loop)
    yield server
    server.close()


@pytest.fixture
def load(tmp_path: Path) -> Load:
    payloads = write_payloads(tmp_path / "payloads", [b"first", b"second", b"third"])
    return Load(
        "grpc", "", PATH, payloads, callers=5, connections=2, seconds=0.3, warmup=0, drain=60
    )


def http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def total(found: LoadResult) -> int:
    return found.answered + sum(found.errors.values())


def test_every_call_that_the_server_answered_is_counted(program: Path, echo: Echo, load: Load):
    found = run_load(replace(load, target=echo.grpc()), program)
    assert found.errors == {}
    assert found.answered == found.sent == echo.count > 0
    assert found.per_second == pytest.approx(found.answered / 0.3, rel=0.01)
    assert set(echo.seen) == {b"first", b"second", b"third"}
    assert max(echo.seen.values()) - min(echo.seen.values()) <= 1
    assert echo.most_at_once <= 5
    times = [found.latency_ms[name] for name in ("p50", "p90", "p99", "p999", "max")]
    assert times == sorted(times)
    assert 0 < found.latency_ms["mean"] <= found.latency_ms["max"]
    assert found.cpu_seconds > 0


def test_errors_are_counted_by_code_and_large_bodies_arrive(program: Path, echo: Echo, load: Load):
    write_payloads(load.payloads, MIXED)
    found = run_load(replace(load, target=echo.grpc()), program)
    assert found.errors == {"grpc 5": echo.seen[b"missing"], "grpc 8": echo.seen[b"full"]}
    assert found.answered == echo.seen[MIXED[0]] + echo.seen[MIXED[2]] > 0
    assert set(echo.seen) == set(MIXED)


def test_of_a_unary_call_one_message_is_expected(program: Path, echo: Echo, load: Load):
    told = replace(load, target=echo.grpc(), path="/test.Echo/Messages")
    write_payloads(load.payloads, [b"0", b"1", b"2"])
    found = run_load(told, program)
    assert found.answered == echo.seen[b"1"] > 0
    assert found.errors == {"no whole message": echo.seen[b"0"] + echo.seen[b"2"]}


def test_a_server_of_another_protocol(program: Path, echo: Echo, load: Load):
    found = run_load(replace(load, target=echo.tcp(lambda *_: b"\x00" * 20)), program)
    assert found.answered == 0
    assert found.errors.keys() == {"closed: by the protocol"}


def test_a_method_that_is_not_there(program: Path, echo: Echo, load: Load):
    found = run_load(replace(load, target=echo.grpc(), path="/test.Echo/Other"), program)
    assert found.answered == 0
    assert found.errors == {"grpc 12": found.sent}


def test_at_a_rate_requests_fall_due_by_the_clock(program: Path, echo: Echo, load: Load):
    found = run_load(replace(load, target=echo.grpc(), rate=50.0, seconds=1.0), program)
    assert found.errors == {}
    assert found.answered == found.sent == echo.count == 50


def test_warm_up_does_not_count(program: Path, echo: Echo, load: Load):
    told = replace(load, target=echo.grpc(), rate=100.0, warmup=0.3, seconds=0.2)
    found = run_load(told, program)
    assert (found.sent, found.answered) == (echo.count, 20) == (50, 20)


def test_at_a_rate_that_is_not_kept_up_with_the_wait_counts(program: Path, echo: Echo, load: Load):
    """50 in half a second, each of which takes 20 ms: the last one waits for as long again."""
    target = echo.tcp(lambda *_: _slowly(http("200 OK", b"{}")))
    told = replace(load, protocol="http", target=target, callers=1, rate=100.0, seconds=0.5)
    found = run_load(told, program)
    assert found.answered == found.sent == echo.count == 50
    assert found.latency_ms["max"] > 500


def test_what_is_never_answered_or_sent_is_an_error(program: Path, echo: Echo, load: Load):
    told = replace(load, protocol="http", target=echo.tcp(lambda *_: b""), callers=2)
    found = run_load(replace(told, rate=100.0, drain=0.1), program)
    assert found.answered == 0
    assert found.errors == {"unanswered": 2, "unsent": 28}


def test_a_server_that_renews_its_connections_loses_nothing(program: Path, echo: Echo, load: Load):
    told = replace(load, target=echo.grpc(max_connection_age_ms=100), seconds=1.0)
    found = run_load(told, program)
    assert found.errors == {}
    assert found.answered == found.sent == echo.count > 0


def _slowly(answer: bytes) -> bytes:
    threading.Event().wait(0.02)
    return answer


def test_headers_are_sent(program: Path, echo: Echo, load: Load):
    told = replace(load, target=echo.grpc(), headers={"x-model": "news:2", "x-other": "b"})
    run_load(told, program)
    assert echo.headers["x-model"] == "news:2"
    assert echo.headers["x-other"] == "b"


def test_http_bodies_whole_and_in_chunks(program: Path, echo: Echo, load: Load):
    seen_heads = []

    def respond(head: bytes, body: bytes, count: int) -> bytes:
        seen_heads.append(head)
        if count % 2:
            return http("200 OK", body)
        parts = b"%x\r\n%b\r\n1\r\n!\r\n0\r\n\r\n" % (len(body), body)
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + parts

    write_payloads(load.payloads, [b"{}", b"x" * 400_000])
    told = replace(load, protocol="http", path="/predict", headers={"content-type": "a/b"})
    found = run_load(replace(told, target=echo.tcp(respond)), program)
    assert found.errors == {}
    assert found.answered == found.sent == echo.count > 0
    assert seen_heads[0].startswith(b"POST /predict HTTP/1.1\r\n")
    assert b"content-type: a/b\r\n" in seen_heads[0]


def test_http_errors_and_lost_connections_are_counted_and_opened_again(
    program: Path, echo: Echo, load: Load
):
    def respond(_head: bytes, body: bytes, _count: int) -> bytes:
        return {
            b"first": http("200 OK", b"{}"),
            b"second": http("503 Service Unavailable", b"{}"),
            b"third": b"CLOSE",
        }[body]

    told = replace(load, protocol="http", target=echo.tcp(respond), callers=2, rate=100.0)
    found = run_load(told, program)
    assert found.answered == echo.seen[b"first"] > 0
    assert found.errors == {
        "http 503": echo.seen[b"second"],
        "closed: by the server": echo.seen[b"third"],
    }
    assert total(found) == found.sent == echo.count == 30


def test_a_connection_that_the_server_ends_in_good_order_is_no_error(
    program: Path, echo: Echo, load: Load
):
    target = echo.tcp(lambda *_: http("200 OK", b"{}", "Connection: close") + b"CLOSE")
    found = run_load(replace(load, protocol="http", target=target, rate=100.0), program)
    assert found.errors == {}
    assert found.answered == echo.count == 30


def test_nobody_there(program: Path, load: Load):
    found = run_load(replace(load, target="127.0.0.1:1", seconds=0.2), program)
    assert found.answered == found.sent == 0
    assert found.latency_ms == {}
    assert set(found.errors) == {"connect: Connection refused"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"protocol": "smtp"}, "--protocol: grpc or http"),
        ({"target": "nowhere"}, "--target nowhere: two parts with a colon between"),
        ({"callers": 0}, "--callers 0: at least 1"),
        ({"payloads": Path("/nonexistent")}, "--payloads /nonexistent: cannot be read"),
    ],
)
def test_what_it_cannot_use_is_refused(program: Path, load: Load, changes: Any, told: str):
    with pytest.raises(LoadGeneratorError, match=told):
        run_load(replace(load, **{"target": "127.0.0.1:1", **changes}), program)


def test_payloads_that_are_cut_off_are_refused(program: Path, load: Load):
    load.payloads.write_bytes(load.payloads.read_bytes()[:-1])
    with pytest.raises(LoadGeneratorError, match="item 2 is cut off"):
        run_load(replace(load, target="127.0.0.1:1"), program)


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("benchmarks.load.shutil.which", lambda _name: None)
    with pytest.raises(LoadGeneratorError, match="apt-get install gcc libnghttp2-dev"):
        build_load_generator(tmp_path / "load")
