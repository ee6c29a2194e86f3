"""OpenTelemetry: a span for each call, within its caller's trace, and one for each stage of it.

Below the span of a stream some messages of it have one, with their stages below that.

Imported only by a server that is told where to send them. Spans go to the collector in the
background, over gRPC: no call waits for it, and where it does not answer they are dropped.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from edgewright import __version__
from edgewright.serve.call_record import CallRecord, stages

_FAULTS: Final = ("INTERNAL", "UNKNOWN", "DATA_LOSS")  # ours; other codes are the callers'
_MESSAGES_TOLD: Final = 16  # of a stream, from its first; then the 32nd, the 64th and so on
_FLUSH_S: Final = 3.0  # for the last spans, at the end
_GIVE_UP_S: Final = 1.0  # for the exporter to notice that it is over

log = logging.getLogger(__name__)


class Tracing:
    """Spans of one server. ``begin`` and ``end`` belong to the event loop."""

    def __init__(self, endpoint: str, share: float) -> None:
        """Traces go to ``endpoint``; of those that begin here ``share`` are kept, 0 to 1.

        Whether a trace that a caller began is kept is the caller's decision.
        """
        # It tells again and again what ``_Exporter`` tells once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        exporter = OTLPSpanExporter(endpoint, insecure=not endpoint.startswith("https:"))
        self._exporter = _Exporter(exporter, endpoint)
        self._processor = BatchSpanProcessor(self._exporter)
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "edgewright"}
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create({**named, "service.version": __version__}),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("edgewright", __version__)
        self._context = TraceContextTextMapPropagator()

    def begin(self, record: CallRecord, headers: Mapping[str, str]) -> None:
        """Open the span of a call, in the trace that its ``traceparent`` names, if any."""
        started_ns = time.time_ns()
        # Spans last as long as the steady clock says, however the other one is set meanwhile.
        record.epoch_ns = started_ns - round(1e9 * record.started)
        record.span = self._tracer.start_span(
            record.method,
            context=self._context.extract(headers),
            kind=SpanKind.SERVER,
            start_time=started_ns,
        )
        if record.span.is_recording():
            record.trace_id = f"{record.span.get_span_context().trace_id:032x}"

    def message(self, stream: CallRecord, record: CallRecord, ended: float) -> None:
        """A span for one message of a stream that was answered then, with its stages."""
        if not stream.trace_id or not _is_told(record.messages):
            return
        record.epoch_ns = stream.epoch_ns
        record.span = self._tracer.start_span(
            "message",
            set_span_in_context(stream.span),
            attributes={"rpc.message.id": record.messages, "edgewright.rows": record.rows},
            start_time=_ns(record, record.started),
        )
        self._stages(record, ended)
        record.span.end(_ns(record, ended))

    def end(self, record: CallRecord, code: str, ended: float) -> None:
        """Close the span of a call that ended then, by time.monotonic, with those of its stages."""
        span = record.span
        if not record.trace_id:
            return
        span.set_attributes(_attributes(record, code))
        if code in _FAULTS:
            span.set_status(StatusCode.ERROR)
        self._stages(record, ended)
        span.end(_ns(record, ended))

    def close(self) -> None:
        """Send what is left, within seconds."""
        sending = threading.Thread(target=self._processor.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(_FLUSH_S)
        if sending.is_alive():
            self._exporter.shutdown()
            sending.join(_GIVE_UP_S)

    def _stages(self, record: CallRecord, ended: float) -> None:
        within = set_span_in_context(record.span)
        for name, start, end in stages(record, ended):
            span = self._tracer.start_span(name, within, start_time=_ns(record, start))
            if name == "compute":
                span.set_attributes(_batch(record))
            span.end(_ns(record, end))


class _Exporter:
    """Tells once that the collector does not answer, and once that it does again."""

    def __init__(self, exporter: Any, endpoint: str) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._failing = False
        self.shutdown: Callable[[], None] = exporter.shutdown
        self.force_flush: Callable[..., bool] = exporter.force_flush

    def export(self, spans: Sequence[Any]) -> Any:
        """Send spans; called on the processor's thread."""
        result = self._exporter.export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            log.warning("traces do not reach %s; spans are dropped until they do", self._endpoint)
        elif self._failing and not failing:
            log.warning("traces reach %s again", self._endpoint)
        self._failing = failing
        return result


def _is_told(number: int) -> bool:
    """Whether the message of this number, from 1, has a span: a stream may have a million."""
    return number <= _MESSAGES_TOLD or number.bit_count() == 1


def _attributes(record: CallRecord, code: str) -> dict[str, str | int]:
    service, _, method = record.method.rpartition("/")
    attributes: dict[str, str | int] = {
        "rpc.service": service,
        "rpc.method": method,
        "edgewright.code": code,
        "edgewright.rows": record.rows,
        "edgewright.request_id": record.request_id,
    }
    if record.messages:
        attributes["edgewright.messages"] = record.messages
    if record.answered_by is not None:
        attributes["edgewright.model"], attributes["edgewright.version"] = record.answered_by
    return attributes


def _batch(record: CallRecord) -> dict[str, int]:
    run = None if record.work is None else record.work.run
    if run is None:
        return {}
    return {
        "edgewright.batch.rows": run.rows,
        "edgewright.batch.tokens": run.tokens,
        "edgewright.batch.padded_tokens": run.padded_tokens,
    }


def _ns(record: CallRecord, moment: float) -> int:
    """A moment by time.monotonic as Unix time."""
    return record.epoch_ns + round(1e9 * moment)
