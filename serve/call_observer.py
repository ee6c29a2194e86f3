"""What is done about every call, whatever protocol it came by: it is named, counted and logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from google.rpc.status_pb2 import Status

from edgewright.rpc_errors import reason_of, to_status
from edgewright.serve.access_log import AccessLog
from edgewright.serve.call_record import REQUEST_ID, CallRecord, RequestIds, cited, current_call
from edgewright.serve.instruments import Instruments

if TYPE_CHECKING:
    from edgewright.serve.tracing import Tracing

CODES = {code.value[0]: code for code in grpc.StatusCode}

_TRACE_CONTEXT: Final = ("traceparent", "tracestate")  # W3C
T = TypeVar("T")
_NOBODY: Final[Mapping[str, str]] = {}

log = logging.getLogger(__name__)


class CallObserver:
    """Told by the edges of gRPC and HTTP when a call begins, fails and ends."""

    def __init__(
        self,
        instruments: Instruments,
        access_log: AccessLog | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._instruments = instruments
        self._access_log = access_log
        self._tracing = tracing
        self._ids = RequestIds()

    def arrived(self, headers: Iterable[tuple[str, Any]]) -> CallRecord:
        """The record of a call with these, in the context of the task that will answer it."""
        given, parent = None, _NOBODY
        for key, value in headers:
            if key == REQUEST_ID:
                given = str(value)
            elif key in _TRACE_CONTEXT and self._tracing is not None:
                parent = {**parent, key: str(value)}
        record = CallRecord(self._ids.name(given), parent)
        current_call.set(record)
        return record

    def begin(self, record: CallRecord, method: str, caller: Callable[[], str]) -> None:
        """It is being answered; ``caller`` tells the peer's address, which gRPC forgets."""
        record.method = method
        if self._access_log is not None:
            record.caller = caller()
        record.started = time.monotonic()
        if self._tracing is not None:
            self._tracing.begin(record, record.parent)

    def failed(self, record: CallRecord, error: Exception) -> Status:
        """What its caller is told; what he has no business to know is in the log, by the id."""
        status = to_status(error)
        reason = reason_of(error)
        self._instruments.rejected.labels(reason).inc()
        if CODES[status.code] is grpc.StatusCode.INTERNAL:
            log.error("%s failed", record.method, exc_info=error)
            status.message = cited(status.message)
        else:
            log.debug("%s: %s", record.method, reason)
        return status

    async def message(self, answer: Callable[[Any], Awaitable[T]], request: Any) -> T:
        """The answer to one message of the present stream; a task of its own waits for it."""
        stream = current_call.get()
        if stream is None:  # whose edge tells of no calls
            return await answer(request)
        message = stream.of_message(time.monotonic())
        current_call.set(message)
        try:
            response = await answer(request)
        finally:
            stream.model = message.model
            stream.rows += message.rows
        self._answered(stream, message, time.monotonic())
        return response

    def _answered(self, stream: CallRecord, message: CallRecord, ended: float) -> None:
        self._instruments.models.message_answered(
            stream.method, message.model, ended - message.started, stream.trace_id
        )
        if self._tracing is not None:
            self._tracing.message(stream, message, ended)

    def end(self, record: CallRecord, code: grpc.StatusCode, *, stream: bool = False) -> None:
        """It has been answered or given up."""
        ended = time.monotonic()
        # What a refusal waited to be told is no time that the server took for its call.
        seconds = None if stream else ended - record.started - record.held_s
        self._instruments.models.call_ended(
            record.method, code.name, record.model, seconds, record.trace_id
        )
        if self._tracing is not None:
            self._tracing.end(record, code.name, ended)
        if self._access_log is not None:
            self._access_log.write(record, code.name, ended)
