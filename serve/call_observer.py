"""What is done about every call, whatever protocol it came by: it is named, counted and logged."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import grpc
from google.rpc.status_pb2 import Status

from edgewright.rpc_errors import reason_of, to_status
from edgewright.serve.access_log import AccessLog
from edgewright.serve.call_record import CallRecord, RequestIds, cited, current_call
from edgewright.serve.instruments import Instruments

CODES = {code.value[0]: code for code in grpc.StatusCode}

log = logging.getLogger(__name__)


class CallObserver:
    """Told by the edges of gRPC and HTTP when a call begins, fails and ends."""

    def __init__(self, instruments: Instruments, access_log: AccessLog | None = None) -> None:
        self._instruments = instruments
        self._access_log = access_log
        self._ids = RequestIds()

    def arrived(self, request_id: str | None) -> CallRecord:
        """The record of a call, in the context of the task that will answer it."""
        record = CallRecord(self._ids.name(request_id))
        current_call.set(record)
        return record

    def begin(self, record: CallRecord, method: str) -> None:
        """It is being answered."""
        record.method = method
        record.started = time.monotonic()

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

    def end(
        self,
        record: CallRecord,
        code: grpc.StatusCode,
        caller: Callable[[], str],
        *,
        stream: bool = False,
    ) -> None:
        """It has been answered or given up; ``caller`` tells the peer's address."""
        ended = time.monotonic()
        seconds = None if stream else ended - record.started
        self._instruments.models.call_ended(record.method, code.name, record.model, seconds)
        if self._access_log is not None:
            self._access_log.write(record, code.name, ended, caller)
