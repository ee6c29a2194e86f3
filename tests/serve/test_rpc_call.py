"""One call: what is read, written and sent at its end, whoever leaves when."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from edgewright.serve import rpc_call
from edgewright.serve.rpc_call import CallLeft, RpcCall

from .conftest import LoopThread, until
from .raw_http2 import DeafClient
from .rpc_fakes import STREAM, UNARY, RunningRpc, Told, echo, echo_all, open_stream

Code = grpc.StatusCode
Serve = Callable[..., RunningRpc]


def from_raw(message: bytes) -> Any:
    """As ``DeafClient`` takes messages."""
    return SimpleNamespace(SerializeToString=lambda: message)


# --- what is read ---


def test_messages_are_read_in_order_and_an_empty_one_is_no_end(serve: Serve) -> None:
    async def read(call: RpcCall) -> None:
        for _ in range(5):
            await call.write(repr(await call.read()).encode())
        await call.write(str(call.read_bytes).encode())

    told = list(serve(read=read).stream("read", [b"one", b"", b"three"]))
    assert told == [b"b'one'", b"b''", b"b'three'", b"None", b"None", b"8"]


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_a_unary_call_is_answered(serve: Serve, size: int) -> None:
    running = serve(echo=echo, options=[("grpc.max_receive_message_length", -1)])
    assert running.call("echo", b"x" * size).result() == b"x" * size


def test_a_unary_call_that_ends_without_a_message_has_none(serve: Serve) -> None:
    async def read(call: RpcCall) -> bytes:
        return repr(await call.read()).encode()

    running = serve(read=read)
    assert running.channel.stream_unary(UNARY + "read")(iter(()), timeout=60) == b"None"


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_it_does_not_matter_for_what_is_read_whether_that_was_before_it_began(
    serve: Serve, path: str
) -> None:
    async def read(call: RpcCall) -> bytes:
        return repr([await call.read() for _ in range(3)]).encode()

    method = serve(read=read).channel.stream_unary(path + "read")
    assert method(iter([b"one", b"two"]), timeout=60) == b"[b'one', b'two', None]"


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_message_that_was_read_is_not_kept(serve: Serve, path: str) -> None:
    async def read(call: RpcCall) -> bytes:
        assert await call.read() == b"one"
        return repr(call._message).encode()

    assert serve(read=read).channel.unary_unary(path + "read")(b"one", timeout=60) == b"None"


def test_messages_beyond_the_first_of_a_unary_call_are_left_unread(serve: Serve) -> None:
    running = serve(echo=echo)
    method = running.channel.stream_unary(UNARY + "echo")
    assert method(iter([b"first", b"second" * 100_000, b"third"]), timeout=60) == b"first"
    assert running.call("echo", b"next").result() == b"next"


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_compressed_message_is_read_as_what_it_was(serve: Serve, path: str) -> None:
    method = serve(echo=echo).channel.unary_unary(path + "echo")
    assert method(b"x" * 9999, timeout=60, compression=grpc.Compression.Gzip) == b"x" * 9999


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_message_that_is_too_large_is_refused(serve: Serve, path: str) -> None:
    running = serve(echo=echo, options=[("grpc.max_receive_message_length", 100)])
    method = running.channel.unary_unary(path + "echo")
    with pytest.raises(grpc.RpcError) as refused:
        method(b"x" * 101, timeout=60)
    assert refused.value.code() is Code.RESOURCE_EXHAUSTED
    assert method(b"x" * 100, timeout=60) == b"x" * 100


def test_a_reader_who_is_cancelled_loses_no_message(serve: Serve) -> None:
    told = Told()

    async def impatient(call: RpcCall) -> None:
        reading = asyncio.ensure_future(call.read())
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        told.say(reading.cancelled())
        await call.write(await call.read() or b"nothing")
        await call.write(await call.read() or b"nothing")

    def messages() -> Iterator[bytes]:
        assert told.here.wait(60)
        yield b"one"
        yield b"two"

    assert list(serve(impatient=impatient).stream("impatient", messages())) == [b"one", b"two"]
    assert told.said == [True]


def test_of_two_who_read_at_once_none_takes_a_message_for_the_end(serve: Serve) -> None:
    async def both(call: RpcCall) -> None:
        told = await asyncio.gather(call.read(), call.read(), return_exceptions=True)
        await call.write(repr(told).encode())

    told = next(serve(both=both).stream("both", [b"one", b"two"]))
    assert told == b"[b'one', RuntimeError('two read one call at a time')]"


# --- what is written ---


def test_a_stream_is_echoed_and_ends_well(serve: Serve) -> None:
    call = serve(echo_all=echo_all).stream("echo_all", [b"%d" % each for each in range(1000)])
    assert list(call) == [b"%d" % each for each in range(1000)]
    assert call.code() is Code.OK


def deaf(running: RunningRpc, name: str) -> DeafClient:
    """Somebody with a call whose answers he takes none of."""
    client = DeafClient(running.port)
    client.call(STREAM + name, [from_raw(b"go")])
    return client


def test_nobody_writes_beside_a_write_that_has_not_ended(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where nobody waits any more for its end, which then is told to nobody."""
    told = Told()

    async def hasty(call: RpcCall) -> None:
        writing = asyncio.ensure_future(call.write(b"one"))
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="no room yet"):
                await call.write(b"two")
            writing.cancel()
            await asyncio.wait([writing])
        assert writing.cancelled()
        told.say(call)

    running = serve(hasty=hasty)
    client = deaf(running, "hasty")
    assert told.here.wait(60)
    client.close()
    until(lambda: not told.said[0]._writing)
    running.loop.run(asyncio.sleep(0))  # what that led to has been logged
    assert caplog.records == []


@pytest.mark.parametrize(
    ("code", "details", "wire"),
    [
        (Code.NOT_FOUND, "there is no Zürich", b"no Z"),
        (Code.NOT_FOUND, "a\ud800b", b"a?b"),
        (Code.OK, "", b"\x0bgrpc-status\x011"),  # CANCELLED: not all of it was taken
    ],
)
def test_a_call_ends_although_its_caller_takes_no_answer(
    serve: Serve, code: grpc.StatusCode, details: str, wire: bytes
) -> None:
    async def gives_up(call: RpcCall) -> None:
        writing = asyncio.ensure_future(call.write(b"x" * 100))
        await asyncio.sleep(0)
        writing.cancel()
        call.end_with(code, details)

    running = serve(gives_up=gives_up)
    client = deaf(running, "gives_up")
    told = b""
    while wire not in told:
        part = client.socket.recv(65536)
        assert part, told
        told += part
    client.close()


def test_who_writes_to_a_caller_who_has_left_is_told(serve: Serve) -> None:
    told = Told()

    async def stubborn(call: RpcCall) -> None:
        told.here.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.said.append(call.left)
        with pytest.raises(CallLeft):
            await call.write(b"late")
        told.said.append(await call.read())
        told.said.append("told")

    call = serve(stubborn=stubborn).stream("stubborn", open_stream(told.release))
    assert told.here.wait(60)
    call.cancel()
    until(lambda: told.said == [True, None, "told"])
    told.release.set()


def test_a_response_that_is_too_large_to_send_is_an_error(serve: Serve) -> None:
    running = serve(echo=echo, options=[("grpc.max_send_message_length", 100)])
    assert running.call("echo", b"x" * 101).code() is Code.RESOURCE_EXHAUSTED
    assert running.call("echo", b"x").result() == b"x"


# --- how it ends ---


@pytest.mark.parametrize(
    ("details", "told"),
    [
        ("there is no Zürich", "there is no Zürich"),
        ("two\nlines\0and 100 %", "two\nlines\0and 100 %"),
        ("a\ud800b", "a?b"),
        ("", ""),
    ],
)
def test_its_caller_is_told_why_whatever_the_letters(serve: Serve, details: str, told: str) -> None:
    async def refuse(call: RpcCall) -> None:
        call.end_with(Code.NOT_FOUND, details, (("where", "here"), ("what-bin", b"\0\xff")))

    call = serve(refuse=refuse).call("refuse")
    assert (call.code(), call.details()) == (Code.NOT_FOUND, told)
    assert dict(call.trailing_metadata()) == {"where": "here", "what-bin": b"\0\xff"}


@pytest.mark.parametrize(
    "trailers",
    [
        (("two words", "x"),),
        (("name", "two\nlines"),),
        (("name", "\0"),),
        (("name", "Zürich"),),
        (("name", "\ud800"),),
        (("name-bin", "text"),),
        (("", "x"),),
    ],
)
def test_trailers_that_cannot_be_sent_are_an_internal_error_at_once(
    serve: Serve, trailers: Any
) -> None:
    async def ends(call: RpcCall) -> bytes:
        call.trailers = trailers
        return b"well"

    running = serve(ends=ends, echo=echo)
    call = running.call("ends")
    assert call.code() is Code.INTERNAL
    assert running.call("echo", b"x").result() == b"x"


def test_a_response_that_is_no_bytes_is_an_internal_error_at_once(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def ends(_call: RpcCall) -> Any:
        return "text"

    running = serve(ends=ends)
    with caplog.at_level(logging.ERROR):
        assert running.call("ends").code() is Code.INTERNAL
        until(lambda: bool(caplog.records))
    assert f"the answer of {UNARY}ends cannot be sent" in caplog.text


def test_a_message_that_is_no_bytes_is_an_internal_error_at_once(serve: Serve) -> None:
    async def writes(call: RpcCall) -> None:
        await call.write("text")  # type: ignore[arg-type]

    call = serve(writes=writes).stream("writes")
    assert call.code() is Code.INTERNAL
    assert call.details() == "the call failed; the server's log says why"


def test_nothing_begins_after_the_end(serve: Serve) -> None:
    told = Told()

    async def ends(call: RpcCall) -> None:
        call.finish(b"the end")
        for begin in (call.read, lambda: call.write(b"more")):
            with pytest.raises(CallLeft):
                await begin()
        call.finish(b"another end")
        told.say("all")

    call = serve(ends=ends).stream("ends", open_stream(told.release))
    assert list(call) == [b"the end"]
    assert told.here.wait(60)
    told.release.set()


# --- who leaves when ---


def leaves(begin: Callable[..., Any], has_come: Callable[[], bool]) -> None:
    call = begin()
    until(has_come)
    call.cancel()


def outlives_his_deadline(begin: Callable[..., Any], has_come: Callable[[], bool]) -> None:
    def came_in_time() -> bool:
        assert begin(timeout=0.5).code() is Code.DEADLINE_EXCEEDED
        return has_come()

    until(came_in_time)  # on a slow machine the first may have left on his way


Leave = Callable[[Callable[..., Any], Callable[[], bool]], None]
LEAVE = pytest.mark.parametrize("leave", [leaves, outlives_his_deadline])


@LEAVE
@pytest.mark.parametrize("where", ["reads", "waits", "writes"])
def test_a_method_is_told_when_its_caller_leaves(serve: Serve, where: str, leave: Leave) -> None:
    told, left = Told(), Told()

    async def method(call: RpcCall) -> None:
        told.here.set()
        try:
            while where == "reads":
                await call.read()
            while where == "writes":
                await call.write(b"x" * 100_000)
            await asyncio.Event().wait()
        except (asyncio.CancelledError, CallLeft):  # the latter from a write
            left.here.set()
            raise

    running = serve(method=method)

    def begin(**given: Any) -> Any:
        return running.stream("method", open_stream(told.release), **given)

    leave(begin, told.here.is_set)
    assert left.here.wait(60)
    told.release.set()


@LEAVE
@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_caller_may_leave_before_his_message(serve: Serve, path: str, leave: Leave) -> None:
    """Whether that would have been read first or not, nothing of his call remains."""
    told = Told()
    running = serve(echo=echo)
    silent = running.channel.stream_unary(path + "echo")

    def begin(**given: Any) -> Any:
        return silent.future(open_stream(told.release), **given)

    leave(begin, lambda: path + "echo" in running.methods.asked)
    assert running.call("echo", b"x").result() == b"x"
    until(lambda: not running.server._tasks and not running.server._unread)
    told.release.set()


# --- what is known of it ---


def test_metadata_is_text_but_where_its_name_says_bytes(serve: Serve) -> None:
    found: list[Any] = []

    async def tell(call: RpcCall) -> bytes:
        found.extend(call.invocation_metadata())
        return b""

    sent = (("name", "value"), ("data-bin", b"\0\xff"), ("name", "again"))
    serve(tell=tell).call("tell", metadata=sent).result()
    assert [(key, value) for key, value in found if key in {"name", "data-bin"}] == [
        ("name", "value"),
        ("data-bin", b"\0\xff"),
        ("name", "again"),
    ]


def test_metadata_beyond_all_measure_is_refused(serve: Serve) -> None:
    running = serve(echo=echo)
    sent = tuple((f"name-{each}", "x" * 1000) for each in range(100))
    assert running.call("echo", metadata=sent).code() is Code.RESOURCE_EXHAUSTED
    assert running.call("echo", b"x", metadata=sent[:5]).result() == b"x"


def test_a_caller_has_an_address(serve: Serve) -> None:
    async def tell(call: RpcCall) -> bytes:
        assert not call.auth_context().get("x509_subject")
        return call.peer().encode()

    assert serve(tell=tell).call("tell").result().startswith(b"ipv4:127.0.0.1:")


def made(loop: LoopThread, deadline: float, monkeypatch: pytest.MonkeyPatch, clock: Any) -> RpcCall:
    details = SimpleNamespace(method=b"/a/\xffb", deadline=deadline)
    event = SimpleNamespace(call=None, call_details=details, invocation_metadata=())
    told = SimpleNamespace(time=lambda: clock.wall, monotonic=lambda: clock.steady)
    monkeypatch.setattr(rpc_call, "time", told)
    return RpcCall(event, loop.loop)


@pytest.mark.parametrize("deadline", [math.inf, 1e15])
def test_a_deadline_at_the_end_of_time_is_none(
    loop: LoopThread, deadline: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = made(loop, deadline, monkeypatch, SimpleNamespace(wall=5, steady=7))
    assert call.time_remaining() is None


def test_a_clock_that_is_set_changes_no_deadline(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(wall=1000.0, steady=7.0)
    call = made(loop, 1010.0, monkeypatch, clock)
    clock.wall, clock.steady = 5.0, 9.0
    assert call.time_remaining() == 8.0
    clock.steady = 100.0
    assert call.time_remaining() == 0.0


def test_a_path_that_is_no_text_is_one_all_the_same(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = made(loop, 1.0, monkeypatch, SimpleNamespace(wall=0, steady=0))
    assert call.method == "/a/\ufffdb"
