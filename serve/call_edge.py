"""The RPC edge: every call is timed and counted, and every exception becomes a status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from edgewright.errors import EdgewrightError, InputError, OverloadedError
from edgewright.rpc_errors import STATUS_METADATA_KEY
from edgewright.serve.call_observer import CODES, CallObserver
from edgewright.serve.call_record import REQUEST_ID, CallRecord, current_call
from edgewright.serve.callers import Callers, Peer, right_for
from edgewright.serve.outgoing import Outgoing
from edgewright.serve.refusals import Refusals
from edgewright.serve.tokens import Right

_OUR_STREAMS = "/edgewright."
# What a call keeps while its refusal waits; unread it is as much, which gRPC has taken in.
_SMALL_BYTES: Final = 64 << 10
_ON_THE_WAY_S: Final = 0.05  # what a call may have taken to get here
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
Answer = Callable[[Any, Any], Awaitable[Any]]
StreamAnswer = Callable[[Any, Any], AsyncGenerator[Any, None]]


class CallEdge(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """All methods of one server, each wrapped: the one handler that ``grpc.aio`` is given.

    It stands for the server where the ``add_...Servicer_to_server`` of generated code wants one.
    Unary methods are wrapped, and our streams, which end when the server drains. Not an
    interceptor, for which ``grpc.aio`` makes two coroutines and more anew with every call.

    ``in_flight`` counts the calls that a drain must wait for. Streams of health and reflection are
    none of them: they last as long as their callers like. ``callers`` says who is let in,
    ``refusal`` whether the queue has room for nobody, and ``outgoing`` hears of what streams send.
    """

    def __init__(
        self,
        observer: CallObserver,
        callers: Callers | None = None,
        refusal: Callable[[], OverloadedError | None] = lambda: None,
        outgoing: Outgoing | None = None,
    ) -> None:
        self.in_flight = 0
        self.refusals = Refusals()
        self._outgoing = Outgoing() if outgoing is None else outgoing
        self._refusal = refusal
        self._observer = observer
        self._callers = None if callers is None or callers.open else callers
        self._services: list[Any] = []
        self._wrapped: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Methods that are found by their names."""
        self._services.extend(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Not registered: ``add_generic_rpc_handlers`` gets them too.

        Of every registered method ``grpc.aio`` keeps a pending call, and for each call that comes
        it waits for all of them anew: with two dozen methods a tenth of what an RPC costs.
        """

    def service(self, handler_call_details: Any) -> Any:
        """The method's handler, wrapped once and kept; None where there is no such method."""
        method = handler_call_details.method
        self._observer.arrived(handler_call_details.invocation_metadata)
        if method in QUEUED and (refusal := self._refusal()) is not None:
            return self._refusing(method, refusal)
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            found = (each.service(handler_call_details) for each in self._services)
            handler = next(filter(None, found), None)
            if handler is not None:
                wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, path: str, handler: Any) -> Any:
        parse, serialise = handler.request_deserializer, handler.response_serializer
        if handler.stream_stream is not None and path.startswith(_OUR_STREAMS):
            return grpc.stream_stream_rpc_method_handler(
                self._edge(path, self._written(handler.stream_stream, parse), stream=True),
                response_serializer=serialise,
            )
        if handler.request_streaming or handler.response_streaming:
            return self._guarded(path, handler)
        return grpc.unary_unary_rpc_method_handler(
            self._edge(path, _returned(handler.unary_unary, parse)), response_serializer=serialise
        )

    def _edge(self, path: str, answer: Answer, *, stream: bool = False) -> Answer:
        """What is around every call. It runs in the call's task from its begin to its end."""
        method, right = path.removeprefix("/"), right_for(path)

        async def edge(given: Any, context: Any) -> Any:
            record, code, caller = self._begin(method, context), grpc.StatusCode.OK, ""
            try:
                try:
                    caller = self._enter(right, context)
                    return await answer(given, context)
                except OverloadedError as refusal:
                    await self._pace(refusal, record, given, context)
                    raise
            except (asyncio.CancelledError, grpc.aio.BaseError):  # the latter from a write
                code = left_by_caller(context.time_remaining(), time.monotonic() - record.started)
                raise
            except Exception as error:  # the edge: nothing may reach the wire as it is
                status = self._observer.failed(record, error)
                code = CODES[status.code]
                await _abort(context, status, record)
            finally:
                self.in_flight -= 1
                self._exit(caller)
                self._observer.end(record, code, stream=stream)

        return edge

    def _written(self, answer: StreamAnswer, parse: Callable[[bytes], Any]) -> Answer:
        """Of a stream: a coroutine that writes, not a generator.

        When a caller leaves while he is answered, a generator is closed some time after gRPC has
        freed the call, and counts as a success.
        """

        async def write(messages: AsyncIterator[bytes], context: Any) -> None:
            async with aclosing(answer(_each_parsed(messages, parse), context)) as responses:
                async for response in responses:
                    with self._outgoing.here():
                        await context.write(response)

        return write

    def _refusing(self, path: str, refusal: OverloadedError) -> Any:
        """Refuses one call without reading it: what refusing costs, those to be answered lack.

        It is the handler of a stream, since of a unary call gRPC reads the message first.
        """

        def refuse(_messages: Any, _context: Any) -> Awaitable[Any]:
            raise refusal

        return grpc.stream_stream_rpc_method_handler(self._edge(path, refuse))

    async def _pace(
        self, refusal: OverloadedError, record: CallRecord, given: Any, context: Any
    ) -> None:
        """Wait until it may be told, unless that would keep a large message."""
        if isinstance(given, bytes) and len(given) > _SMALL_BYTES:
            return
        begun = time.monotonic()
        try:
            await self.refusals.pace(refusal, context.peer(), context.time_remaining())
        finally:
            record.held_s = time.monotonic() - begun

    def _begin(self, method: str, context: Any) -> CallRecord:
        self.in_flight += 1
        record = current_call.get()
        assert record is not None  # ``service`` has run in this task
        self._observer.begin(record, method, context.peer)
        context.set_trailing_metadata(((REQUEST_ID, record.request_id),))
        return record

    def _guarded(self, path: str, handler: Any) -> Any:
        """A stream that is not ours, for those who may."""
        right = right_for(path)
        if self._callers is None or right is None:
            return handler

        async def edge(messages: Any, context: Any) -> None:
            caller = ""
            try:
                caller = self._enter(right, context)
                async with aclosing(handler.stream_stream(messages, context)) as responses:
                    async for response in responses:
                        await context.write(response)
            except EdgewrightError as error:
                record = current_call.get()
                assert record is not None  # as above
                await _abort(context, self._observer.failed(record, error), record)
            finally:
                self._exit(caller)

        return grpc.stream_stream_rpc_method_handler(
            edge, handler.request_deserializer, handler.response_serializer
        )

    def _enter(self, right: Right | None, context: Any) -> str:
        if self._callers is None or right is None:
            return ""
        caller = self._callers.enter(right, Peer.of(context))
        if (record := current_call.get()) is not None:
            record.known_as = caller
        return caller

    def _exit(self, caller: str) -> None:
        if self._callers is not None and caller:
            self._callers.leave(caller)


def _returned(answer: Answer, parse: Callable[[bytes], Any]) -> Answer:
    """Of a unary method, by its message as it came."""
    return lambda message, context: answer(_parsed(message, parse), context)


async def _abort(context: Any, status: Status, record: CallRecord) -> None:
    trailers = (
        (STATUS_METADATA_KEY, status.SerializeToString()),
        (REQUEST_ID, record.request_id),
    )
    await context.abort(CODES[status.code], status.message, trailers)


async def _each_parsed(
    messages: AsyncIterator[bytes], parse: Callable[[bytes], Any]
) -> AsyncIterator[Any]:
    async for message in messages:
        yield _parsed(message, parse)


def _parsed(message: bytes, parse: Callable[[bytes], Any]) -> Any:
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
