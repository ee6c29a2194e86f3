"""The RPC edge: every call is timed and counted, and every exception becomes a status."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from edgewright.errors import InputError
from edgewright.rpc_errors import STATUS_METADATA_KEY, reason_of, to_status
from edgewright.serve.call_record import CallRecord, current_call
from edgewright.serve.instruments import Instruments

log = logging.getLogger(__name__)

_OUR_STREAMS = "/edgewright."
_CODES = {code.value[0]: code for code in grpc.StatusCode}
Answer = Callable[[Any, Any], Awaitable[Any]]
StreamAnswer = Callable[[Any, Any], AsyncIterator[Any]]


class CallEdge(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Wraps the unary methods, and our streams, which end when the server drains.

    ``in_flight`` counts the calls that a drain must wait for. Streams of health and reflection pass
    untouched: they last as long as their callers like.
    """

    def __init__(self, instruments: Instruments) -> None:
        self.in_flight = 0
        self._instruments = instruments
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """The method's handler, wrapped once and kept."""
        current_call.set(CallRecord())  # in the task that will run the handler
        wrapped = self._wrapped.get(details.method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(details)
        if handler is None:
            return handler
        if handler.stream_stream is not None and details.method.startswith(_OUR_STREAMS):
            wrapped = grpc.stream_stream_rpc_method_handler(
                self._stream_edge(
                    details.method, handler.stream_stream, handler.request_deserializer
                ),
                response_serializer=handler.response_serializer,
            )
        elif handler.request_streaming or handler.response_streaming:
            return handler
        else:
            wrapped = grpc.unary_unary_rpc_method_handler(
                self._edge(details.method, handler.unary_unary, handler.request_deserializer),
                response_serializer=handler.response_serializer,
            )
        self._wrapped[details.method] = wrapped
        return wrapped

    def _edge(self, path: str, answer: Answer, parse: Callable[[bytes], Any]) -> Answer:
        method = path.removeprefix("/")

        async def edge(message: bytes, context: Any) -> Any:
            started = time.perf_counter()
            self.in_flight += 1
            code = grpc.StatusCode.OK
            try:
                return await answer(_parsed(message, parse), context)
            except asyncio.CancelledError:
                code = _left_by_caller(context)
                raise
            except Exception as error:  # the edge: nothing may reach the wire as it is
                status = self._status(method, error)
                code = _CODES[status.code]
                await _abort(context, status)
            finally:
                self._leave(method, code, time.perf_counter() - started)

        return edge

    def _stream_edge(
        self, path: str, answer: StreamAnswer, parse: Callable[[bytes], Any]
    ) -> StreamAnswer:
        method = path.removeprefix("/")

        async def edge(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            self.in_flight += 1
            code = grpc.StatusCode.OK
            try:
                async for response in answer(_each_parsed(messages, parse), context):
                    yield response
            except asyncio.CancelledError:
                code = _left_by_caller(context)
                raise
            except Exception as error:  # the edge, as above
                status = self._status(method, error)
                code = _CODES[status.code]
                await _abort(context, status)
            finally:
                self._leave(method, code)

        return edge

    def _status(self, method: str, error: Exception) -> Status:
        status = to_status(error)
        self._instruments.rejected.labels(reason_of(error)).inc()
        if _CODES[status.code] is grpc.StatusCode.INTERNAL:
            log.error("%s failed", method, exc_info=error)
        else:
            log.debug("%s: %s", method, error)
        return status

    def _leave(self, method: str, code: grpc.StatusCode, seconds: float | None = None) -> None:
        self.in_flight -= 1
        call = current_call.get()
        model = call.model if call else None
        self._instruments.models.call_ended(method, code.name, model, seconds)


async def _abort(context: Any, status: Any) -> None:
    trailers = ((STATUS_METADATA_KEY, status.SerializeToString()),)
    await context.abort(_CODES[status.code], status.message, trailers)


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


def _left_by_caller(context: Any) -> grpc.StatusCode:
    left_s = context.time_remaining()
    late = left_s is not None and left_s <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
