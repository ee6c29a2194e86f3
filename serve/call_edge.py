"""The RPC edge: every call is timed and counted, and every exception becomes a status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from edgewright.errors import (
    DeadlineError,
    EdgewrightError,
    InputError,
    OverloadedError,
)
from edgewright.rpc_errors import STATUS_METADATA_KEY
from edgewright.serve.call_observer import CODES, CallObserver
from edgewright.serve.call_record import REQUEST_ID, CallRecord, current_call
from edgewright.serve.callers import Callers, Peer, right_for
from edgewright.serve.refusals import Refusals
from edgewright.serve.rpc_call import CallLeft, RpcCall
from edgewright.serve.rpc_server import Method
from edgewright.serve.shutting_down import shutting_down
from edgewright.serve.tokens import Right
from edgewright.serve.transfers import Transfers

_OUR_STREAMS = "/edgewright."
# What a call keeps while its refusal waits; unread it is as much, which gRPC has taken in.
_SMALL_BYTES: Final = 64 << 10
_ON_THE_WAY_S: Final = 0.05  # what a call may have taken to get here
_SENDING_S: Final = 0.1  # that room is kept for a message of who was let in
_MESSAGE_S: Final = 30.0  # for the one message of a call, as for a body over HTTP
_LEAVING_S: Final = 0.05  # within which is known why no message comes: he has left, or sends none
# Unary methods whose calls all wait in the queue.
QUEUED: Final = frozenset(
    (
        "/edgewright.v1.PredictionService/ClassifyText",
        "/edgewright.v1.PredictionService/ClassifyImage",
        "/edgewright.v1.PredictionService/EmbedText",
        "/edgewright.v1.PredictionService/EmbedImage",
        "/inference.GRPCInferenceService/ModelInfer",
    )
)
# Of a method, by its request.
Answer = Callable[[Any, RpcCall], Awaitable[Any]]
StreamAnswer = Callable[[Any, RpcCall], AsyncGenerator[Any, None]]
Answers = Callable[[RpcCall], AsyncGenerator[Any, None]]
Serialise = Callable[[Any], bytes]
Parse = Callable[[bytes], Any]


class CallEdge:
    """All methods of one server, each wrapped.

    It stands for the server where the ``add_...Servicer_to_server`` of generated code wants one,
    and is what an ``RpcServer`` can do.

    ``in_flight`` counts the calls that a drain must wait for. Streams of health and reflection are
    none of them: they last as long as their callers like. ``callers`` says who is let in,
    ``refusal`` whether the queue has room, given how many wait for it and how many were let in and
    have not come to it, and ``transfers`` hears of messages that are waited for or sent.
    """

    def __init__(
        self,
        observer: CallObserver,
        callers: Callers | None = None,
        refusal: Callable[[int, int], OverloadedError | None] = lambda _waiting, _coming: None,
        transfers: Transfers | None = None,
    ) -> None:
        self.in_flight = 0
        self.came = 0  # calls, so far
        self._draining = False
        self.refusals = Refusals()
        self._transfers = Transfers() if transfers is None else transfers
        self._refusal = refusal
        self._refuses = False  # whether there was no room for the latest call that wants some
        self._observer = observer
        self._callers = None if callers is None or callers.open else callers
        self._services: list[Any] = []
        self._wrapped: dict[str, Method] = {}
        self._unary: set[str] = set()  # paths of those wrapped that take one message

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Methods that are found by their names."""
        self._services.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Not registered: ``add_generic_rpc_handlers`` gets them too."""

    def is_read_first(self, path: str) -> bool:
        """Of a unary method, unless it is likely to be refused: unread, a call costs less."""
        refused = self._draining or (self._refuses and path in QUEUED)
        return path in self._unary and not refused

    def find(self, call: RpcCall) -> Method | None:
        """The method, wrapped once and kept; None where there is no such method."""
        path = call.method
        self.came += 1
        self._observer.arrived(call.invocation_metadata())
        wrapped = self._wrapped.get(path)
        if wrapped is None:
            found = (each.service(_Path(path)) for each in self._services)
            handler = next(filter(None, found), None)
            if handler is not None:
                wrapped = self._wrapped[path] = self._wrap(path, handler)
        return wrapped

    def drain(self) -> None:
        """Send elsewhere what is held, and what comes from now on but for probes."""
        self._draining = True
        self.refusals.drain()

    def _wrap(self, path: str, handler: Any) -> Method:
        parse, serialise = handler.request_deserializer, handler.response_serializer
        if handler.unary_unary is not None:
            self._unary.add(path)
            respond = self._returned(handler.unary_unary, parse, serialise)
            return self._edge(path, self._queued(respond) if path in QUEUED else respond)
        if handler.stream_stream is not None:
            answer = _answers_to_many(handler.stream_stream, parse)
        else:
            answer = self._answers_to_one(handler.unary_stream, parse)
        if path.startswith(_OUR_STREAMS):
            written = _written(answer, serialise, self._transfers.here)
            return self._edge(path, written, stream=True)
        return self._guarded(path, _written(answer, serialise))

    def _edge(self, path: str, answer: Method, *, stream: bool = False) -> Method:
        """What is around every call. It runs in the call's task from its begin to its end."""
        method, right = path.removeprefix("/"), right_for(path)

        async def edge(call: RpcCall) -> bytes | None:
            record, code, caller = self._begin(method, call), grpc.StatusCode.OK, ""
            try:
                try:
                    caller = self._enter(right, call)
                    return await answer(call)
                except OverloadedError as refusal:
                    if not record.held_s:
                        await self._pace(refusal, record, call)
                    raise
            except (asyncio.CancelledError, CallLeft):
                code = left_by_caller(call.time_remaining(), time.monotonic() - record.started)
                raise
            except Exception as error:  # the edge: nothing may reach the wire as it is
                if self._draining and isinstance(error, OverloadedError):
                    error = shutting_down()  # there will be no room here, however long one waits
                status = self._observer.failed(record, error)
                code = CODES[status.code]
                _fail(call, status, record)
                return None
            finally:
                self.in_flight -= 1
                self._exit(caller)
                self._observer.end(record, code, stream=stream)

        return edge

    def _queued(self, answer: Method) -> Method:
        """Of a method whose calls wait in the queue: without room there, they wait for it unread.

        What refusing costs, those to be answered lack, and reading what is refused.
        """

        async def answer_with_room(call: RpcCall) -> bytes | None:
            refusal = self._refusal(self.refusals.waiting, self.refusals.on_the_way)
            self._refuses = refusal is not None
            if refusal is None:
                return await answer(call)
            try:
                return await self._answer_once_let_in(answer, call, refusal)
            finally:
                self.let_in()  # it may have left before it came to the queue

        return answer_with_room

    async def _answer_once_let_in(
        self, answer: Method, call: RpcCall, refusal: OverloadedError
    ) -> bytes | None:
        record = current_call.get()
        assert record is not None  # as in ``_begin``
        if not await self._pace(refusal, record, call, for_room=True):
            raise refusal
        held_s, record.held_s = record.held_s, 0.0
        try:
            async with asyncio.timeout(_SENDING_S):
                await call.fetch()
        except TimeoutError:
            pass  # he holds up nobody: ``answer`` goes on waiting for his message
        finally:
            self.refusals.entered()
        # Once this one is in the queue, or known to take his time: there may be room for more.
        asyncio.get_running_loop().call_soon(self.let_in)
        try:
            return await answer(call)
        except OverloadedError:
            record.held_s = held_s  # it has waited enough
            raise

    def let_in(self) -> None:
        """Those who wait for room, in turn, as far as there is some beside who is on the way."""
        refusals = self.refusals
        while refusals.waiting and self._refusal(0, refusals.on_the_way) is None:
            refusals.let_in()

    async def _pace(
        self, refusal: OverloadedError, record: CallRecord, call: RpcCall, *, for_room: bool = False
    ) -> bool:
        """Wait until it may be told, unless that would keep a large message.

        Whether there was room instead, for a call that waits for that.
        """
        if call.read_bytes > _SMALL_BYTES:
            return False
        begun = time.monotonic()
        try:
            return await self.refusals.pace(
                refusal, call.peer(), call.time_remaining(), for_room=for_room
            )
        finally:
            record.held_s = time.monotonic() - begun

    def _begin(self, method: str, call: RpcCall) -> CallRecord:
        record = current_call.get()
        assert record is not None  # ``find`` has run in this task
        self._observer.begin(record, method, call.peer)
        call.trailers = ((REQUEST_ID, record.request_id),)
        self.in_flight += 1  # last: what failed before is nothing that a drain waits for
        return record

    def _guarded(self, path: str, answer: Method) -> Method:
        """A stream that is not ours, for those who may."""
        right = right_for(path)

        async def edge(call: RpcCall) -> bytes | None:
            caller = ""
            try:
                caller = self._enter(right, call)
                return await answer(call)
            except EdgewrightError as error:
                record = current_call.get()
                assert record is not None  # as above
                _fail(call, self._observer.failed(record, error), record)
                return None
            finally:
                self._exit(caller)

        return edge

    def _returned(self, answer: Answer, parse: Parse, serialise: Serialise) -> Method:
        """Of a unary method: its response."""

        async def respond(call: RpcCall) -> bytes:
            return serialise(await answer(await self._one(call, parse), call))

        return respond

    def _answers_to_one(self, answer: StreamAnswer, parse: Parse) -> Answers:
        """Of a method that takes one message and answers with a stream."""

        async def answers(call: RpcCall) -> AsyncGenerator[Any, None]:
            async with aclosing(answer(await self._one(call, parse), call)) as responses:
                async for response in responses:
                    yield response

        return answers

    async def _one(self, call: RpcCall, parse: Parse) -> Any:
        """The one message of a call."""
        message = await (call.read() if call.is_ahead else self._read_in_time(call))
        if message is None:
            await asyncio.sleep(_LEAVING_S)  # one who has left is not at fault, and cancels this
            raise CallLeft if call.left else InputError("the call has no message; send one")
        return _parsed(message, parse)

    async def _read_in_time(self, call: RpcCall) -> bytes | None:
        """Else calls without one would be kept, each some 20 kB, for as long as callers like."""
        try:
            with self._transfers.here():
                async with asyncio.timeout(_MESSAGE_S):
                    return await call.read()
        except TimeoutError:
            raise DeadlineError(
                f"the call's message did not come within {_MESSAGE_S:g} s; send it at once"
            ) from None
        except asyncio.CancelledError:
            if self._draining and not call.left:  # it was ended as one that is stuck
                raise shutting_down() from None
            raise

    def _enter(self, right: Right | None, call: RpcCall) -> str:
        if self._draining and right is not None:
            raise shutting_down()
        if self._callers is None or right is None:
            return ""
        peer = Peer.of(call)
        if not peer.address:  # gRPC forgets who called, as the certificate too, once a call is over
            raise CallLeft
        return self._callers.enter(right, peer, current_call.get())

    def _exit(self, caller: str) -> None:
        if self._callers is not None and caller:
            self._callers.leave(caller)


class _Path(NamedTuple):
    """As much of a call as generated code finds its handler by."""

    method: str


def _written(
    answers: Answers,
    serialise: Serialise,
    sending: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Method:
    """Of a stream: its responses, each on its way within ``sending``."""

    async def write(call: RpcCall) -> None:
        async with aclosing(answers(call)) as responses:
            async for response in responses:
                with sending():
                    await call.write(serialise(response))

    return write


def _answers_to_many(answer: StreamAnswer, parse: Parse) -> Answers:
    """Of a method that takes a stream and answers with one."""

    async def messages(call: RpcCall) -> AsyncIterator[Any]:
        while (message := await call.read()) is not None:
            yield _parsed(message, parse)

    return lambda call: answer(messages(call), call)


def _fail(call: RpcCall, status: Status, record: CallRecord) -> None:
    trailers = (
        (STATUS_METADATA_KEY, status.SerializeToString()),
        (REQUEST_ID, record.request_id),
    )
    call.end_with(CODES[status.code], status.message, trailers)


def _parsed(message: bytes, parse: Parse) -> Any:
    try:
        return parse(message)
    except DecodeError as error:
        raise InputError(f"the request is not the message of this method: {error}") from error


def left_by_caller(left_s: float | None, spent_s: float) -> grpc.StatusCode:
    """What became of a call whose caller left after ``spent_s`` with ``left_s`` to go.

    He leaves at his deadline, which is told here rounded up, by a hundredth at most, and as what
    remained when he called: by this clock it is yet to come.
    """
    if left_s is None or left_s > _ON_THE_WAY_S + (spent_s + left_s) / 100:
        return grpc.StatusCode.CANCELLED
    return grpc.StatusCode.DEADLINE_EXCEEDED
