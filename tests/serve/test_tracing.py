"""Traces, as a collector receives them: a real one's service, in the test."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from edgewright.errors import BackendUnavailableError
from edgewright.repository import Repository
from edgewright.serve.trace_endpoint import open_tracing
from edgewright.v1.feedback_pb2 import FeedbackEntry, StreamFeedbackRequest
from edgewright.v1.feedback_pb2_grpc import FeedbackServiceStub
from edgewright.v1.prediction_pb2 import (
    ClassifyImageRequest,
    ClassifyTextRequest,
    StreamClassifyRequest,
    StreamItem,
)

from .bundles import POISON
from .conftest import Launch, Running, until
from .image_bundles import make_image_bundle, png
from .test_logs import Log

pytest.importorskip("opentelemetry.exporter", reason="edgewright[otel] is missing")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
STAGES = ["queue", "preprocess", "compute", "postprocess"]
METHOD = "edgewright.v1.PredictionService/ClassifyText"
STREAM = "edgewright.v1.PredictionService/StreamClassify"


class Collector(TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self._server = grpc.server(ThreadPoolExecutor(1))
        add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(  # noqa: N802 -- the protocol's name
        self, request: ExportTraceServiceRequest, context: Any
    ) -> Any:
        for resource in request.resource_spans:
            attributes = {
                each.key: each.value.string_value for each in resource.resource.attributes
            }
            self.services.add(attributes["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return ExportTraceServiceResponse()

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def collector() -> Iterator[Collector]:
    received = Collector()
    yield received
    received.stop()


def traced(launch: Launch, collector: Collector, *path: Path, **options: Any) -> Running:
    return launch(*path, otlp_endpoint=f"http://127.0.0.1:{collector.port}", **options)


def sent(running: Running, collector: Collector) -> list[Any]:
    """Every span there is: a drain leaves none behind."""
    running.loop.run(running.server.__aexit__(None, None, None))
    return collector.spans


def values(span: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


def headers(sampled: bool = True) -> tuple[tuple[str, str], ...]:
    flag = "01" if sampled else "00"
    return (("traceparent", f"00-{TRACE}-{PARENT}-{flag}"), ("x-request-id", "order-17"))


def call(running: Running, *texts: str, metadata: Any = ()) -> None:
    request = ClassifyTextRequest(texts=texts)
    running.predictions.ClassifyText(request, metadata=metadata, timeout=30)


def test_a_call_is_a_span_of_its_caller_s_trace_with_its_stages_below(
    launch: Launch, collector: Collector
) -> None:
    running = traced(launch, collector, instances=1)  # so that both rows are of one run
    call(running, "bank shares", "goal", metadata=headers())
    spans = {span.name: span for span in sent(running, collector)}
    assert set(spans) == {METHOD, *STAGES}
    root = spans[METHOD]
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
    assert root.kind == root.SPAN_KIND_SERVER
    assert values(root) == {
        "rpc.service": "edgewright.v1.PredictionService",
        "rpc.method": "ClassifyText",
        "edgewright.code": "OK",
        "edgewright.rows": 2,
        "edgewright.request_id": "order-17",
        "edgewright.model": "news",
        "edgewright.version": 1,
    }
    stages = [spans[name] for name in STAGES]
    assert {stage.parent_span_id for stage in stages} == {root.span_id}
    starts = [stage.start_time_unix_nano for stage in stages]
    assert root.start_time_unix_nano <= starts[0]
    assert starts == sorted(starts)
    assert all(stage.start_time_unix_nano <= stage.end_time_unix_nano for stage in stages)
    assert stages[-1].end_time_unix_nano == root.end_time_unix_nano
    batch = {
        f"edgewright.batch.{key}": n
        for key, n in {"rows": 2, "tokens": 7, "padded_tokens": 8}.items()
    }
    assert values(spans["compute"]) == batch
    assert collector.services == {"edgewright"}


def test_images_are_decoded_between_two_waits(
    launch: Launch, collector: Collector, tmp_path: Path
) -> None:
    Repository(tmp_path / "repository").publish(make_image_bundle(tmp_path / "bundle"), "digits")
    running = traced(launch, collector, tmp_path / "repository")
    running.predictions.ClassifyImage(ClassifyImageRequest(images=[png((200, 30, 30))]), timeout=30)
    spans = [span for span in sent(running, collector) if span.name in STAGES]
    spans.sort(key=lambda span: span.start_time_unix_nano)
    assert [span.name for span in spans] == ["queue", "preprocess", *STAGES]
    decoding, waiting = spans[1:3]
    assert decoding.start_time_unix_nano < decoding.end_time_unix_nano
    assert decoding.end_time_unix_nano == waiting.start_time_unix_nano


def test_failures_are_told_in_the_span(launch: Launch, collector: Collector) -> None:
    running = traced(launch, collector)
    for text in (POISON, ""):
        with pytest.raises(grpc.RpcError):
            call(running, text)
    until(lambda: running.server.in_flight == 0)
    roots = [span for span in sent(running, collector) if span.name == METHOD]
    told = {values(span)["edgewright.code"]: span.status.code for span in roots}
    assert told == {"INTERNAL": 2, "INVALID_ARGUMENT": 0}  # an error, and none of ours


def test_a_message_of_a_stream_is_a_span_with_its_stages_below(
    launch: Launch, collector: Collector
) -> None:
    running = traced(launch, collector, instances=1)
    asked = StreamClassifyRequest(items=[StreamItem(text="bank"), StreamItem(text="goal")])
    (_,) = running.predictions.StreamClassify(iter([asked]), metadata=headers(), timeout=30)
    until(lambda: running.server.in_flight == 0)
    spans = {span.name: span for span in sent(running, collector)}
    assert set(spans) == {STREAM, "message", *STAGES}
    root, message = spans[STREAM], spans["message"]
    assert values(root)["edgewright.messages"] == 1
    assert values(root)["edgewright.rows"] == 2
    assert values(message) == {"rpc.message.id": 1, "edgewright.rows": 2}
    assert message.parent_span_id == root.span_id
    assert {spans[name].parent_span_id for name in STAGES} == {message.span_id}
    assert values(spans["compute"])["edgewright.batch.rows"] == 2
    bounds = [
        (span.start_time_unix_nano, span.end_time_unix_nano)
        for span in (root, message, spans["compute"])
    ]
    assert [start for start, _ in bounds] == sorted(start for start, _ in bounds)
    assert [end for _, end in bounds] == sorted((end for _, end in bounds), reverse=True)


def test_a_long_stream_has_spans_for_few_of_its_messages(
    launch: Launch, collector: Collector
) -> None:
    running = traced(launch, collector)
    requests = [StreamClassifyRequest(items=[StreamItem(text="bank")])] * 150
    assert len(list(running.predictions.StreamClassify(iter(requests), timeout=60))) == 150
    until(lambda: running.server.in_flight == 0)
    spans = sent(running, collector)
    told = [values(span)["rpc.message.id"] for span in spans if span.name == "message"]
    assert sorted(told) == [*range(1, 17), 32, 64, 128]
    (root,) = [span for span in spans if span.name == STREAM]
    assert values(root)["edgewright.rows"] == values(root)["edgewright.messages"] == 150
    assert len(root.events) == 0


def test_feedback_s_messages_are_told_too(
    launch: Launch, collector: Collector, tmp_path: Path
) -> None:
    running = traced(launch, collector, feedback=f"sqlite:///{tmp_path / 'store.db'}")
    entries = [FeedbackEntry(entry_id=each, text=each, label="sport") for each in "ab"]
    (_,) = FeedbackServiceStub(running.channel).StreamFeedback(
        iter([StreamFeedbackRequest(entries=entries)]), timeout=30
    )
    until(lambda: running.server.in_flight == 0)
    message, root = sent(running, collector)
    assert (message.name, message.parent_span_id) == ("message", root.span_id)
    assert values(message) == {"rpc.message.id": 1, "edgewright.rows": 2}


def test_http_calls_are_traced_too_and_the_log_names_the_trace(
    launch: Launch, collector: Collector
) -> None:
    log = Log()
    logger = logging.getLogger("edgewright")
    logger.addHandler(log.thread)
    try:
        running = traced(launch, collector, access_log="all")
        request = urllib.request.Request(
            f"http://127.0.0.1:{running.server.metrics_port}/v1/models/news:classify",
            json.dumps({"texts": ["bank"]}).encode(),
            dict(headers()),
        )
        urllib.request.urlopen(request, timeout=30).close()
        (line,) = log.accesses(1)
    finally:
        logger.removeHandler(log.thread)
        log.thread.close()
    assert (line["trace_id"], line["request_id"]) == (TRACE, "order-17")
    assert {span.trace_id.hex() for span in sent(running, collector)} == {TRACE}


def test_a_caller_who_does_not_keep_his_trace_is_heeded_and_so_is_the_share(
    launch: Launch, collector: Collector
) -> None:
    running = traced(launch, collector)
    call(running, "bank", metadata=headers(sampled=False))
    assert sent(running, collector) == []
    running = traced(launch, collector, trace_sample=0.0)
    call(running, "bank")
    call(running, "bank", metadata=headers())
    assert {span.trace_id.hex() for span in sent(running, collector)} == {TRACE}


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_traceparent_that_is_none_begins_a_trace(
    launch: Launch, collector: Collector, traceparent: str
) -> None:
    running = traced(launch, collector)
    call(running, "bank", metadata=(("traceparent", traceparent),))
    (root,) = [span for span in sent(running, collector) if span.name == METHOD]
    assert root.parent_span_id == b""


def test_a_traced_call_is_the_exemplar_of_its_duration(
    launch: Launch, collector: Collector
) -> None:
    running = traced(launch, collector)
    call(running, "bank", metadata=headers())
    call(running, "bank", metadata=headers(sampled=False))
    url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
    asked = urllib.request.Request(
        url, headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(asked, timeout=30) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        families = list(text_string_to_metric_families(response.read().decode()))
    exemplars = [
        (sample.name, sample.exemplar.labels)
        for family in families
        for sample in family.samples
        if sample.exemplar
    ]
    assert exemplars == [("edgewright_request_seconds_bucket", {"trace_id": TRACE})]
    with urllib.request.urlopen(url, timeout=30) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        assert TRACE not in response.read().decode()


def test_a_collector_that_is_not_there_holds_nobody_up_and_is_told_of_once(
    launch: Launch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as reserved:  # without listening, so that nobody else gets the port
        reserved.bind(("127.0.0.1", 0))
        running = launch(otlp_endpoint=f"http://127.0.0.1:{reserved.getsockname()[1]}")
        for _ in range(3):
            call(running, "bank")
        running.loop.run(running.server.__aexit__(None, None, None))
    told = [record for record in caplog.records if "traces do not reach" in record.getMessage()]
    assert len(told) == 1
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_without_opentelemetry_the_option_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "edgewright.serve.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'edgewright\[otel\]'"):
        open_tracing("http://localhost:4317", 1.0)
    assert open_tracing(None, 1.0) is None


def test_a_server_that_traces_nothing_does_not_import_opentelemetry() -> None:
    code = "import sys, edgewright.serve.server; print('opentelemetry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
