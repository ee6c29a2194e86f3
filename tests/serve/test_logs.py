"""Log lines: whose call they are about, what the access log tells, and that nobody waits for them."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import grpc
import pytest

from edgewright.serve.call_record import RequestIds
from edgewright.serve.logs import JsonFormatter, LogThread, TextFormatter
from edgewright.serve.prediction_service import PredictionService
from edgewright.serve.tokens import Right, new_token
from edgewright.v1.prediction_pb2 import (
    ClassifyTextRequest,
    StreamClassifyRequest,
    StreamClassifyResponse,
    StreamItem,
)

from .bundles import POISON
from .conftest import Gate, Launch, Running, until

OWN = (("x-request-id", "order-17"),)
SECRET = "market of a minister"  # what callers ask about is nobody's business


class Written(logging.Handler):
    """Keeps the lines that it is to write."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class Log:
    """What the server's log holds, as JSON."""

    def __init__(self) -> None:
        self.writer = Written(JsonFormatter())
        self.thread = LogThread(self.writer)

    def lines(self, logger: str) -> list[dict[str, Any]]:
        every = [json.loads(line) for line in self.writer.lines]
        return [line for line in every if line["logger"] == logger]

    def accesses(self, count: int) -> list[dict[str, Any]]:
        until(lambda: len(self.lines("edgewright.access")) >= count)
        assert len(self.lines("edgewright.access")) == count
        return self.lines("edgewright.access")


@pytest.fixture
def log() -> Iterator[Log]:
    kept = Log()
    logger = logging.getLogger("edgewright")
    logger.addHandler(kept.thread)
    yield kept
    logger.removeHandler(kept.thread)
    kept.thread.close()


def post(running: Running, path: str, body: Any, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", running.server.metrics_port, timeout=30)
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def named(running: Running, *texts: str, own: tuple[tuple[str, str], ...] = ()) -> str:
    """The request id that a call's trailers tell, whether it went well or not."""
    request = ClassifyTextRequest(texts=texts)
    try:
        _, call = running.predictions.ClassifyText.with_call(request, metadata=own, timeout=30)
    except grpc.RpcError as error:
        call = error
    return str(dict(call.trailing_metadata())["x-request-id"])


def test_a_caller_s_own_id_comes_back_and_others_get_one_each(launch: Launch) -> None:
    running = launch()
    assert named(running, "bank", own=OWN) == "order-17"
    assert named(running, own=OWN) == "order-17"  # no text: refused
    new = [named(running, "bank") for _ in range(3)] + [named(running)]
    assert len({*new}) == 4
    assert all(re.fullmatch("[0-9a-f]{20}", each) for each in new)
    good = post(running, "/v1/models/news:classify", {"texts": ["bank"]}, **{"X-Request-ID": "a/1"})
    bad = post(running, "/v1/models/news:classify", {"texts": []}, **{"X-Request-ID": "a/2"})
    assert [each.headers["X-Request-Id"] for each in (good, bad)] == ["a/1", "a/2"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "line\nbreak", "ü", "\x1b[31m"])
def test_what_would_spoil_a_log_is_no_id(given: str) -> None:
    assert re.fullmatch("[0-9a-f]{20}", RequestIds().name(given))


def test_ids_of_two_servers_differ() -> None:
    assert RequestIds().name(None) != RequestIds().name(None)


def test_an_internal_error_is_found_in_the_log_by_the_id_that_its_caller_was_told(
    launch: Launch, log: Log
) -> None:
    running = launch()
    with pytest.raises(grpc.RpcError) as failure:
        running.classify(POISON)
    told = str(failure.value.details()).rpartition("request id ")[2]
    until(lambda: bool(log.lines("edgewright.serve.call_observer")))
    (line,) = log.lines("edgewright.serve.call_observer")
    assert line["request_id"] == told
    assert "no finite scores" in line["exception"]


def test_an_item_that_fails_in_a_stream_tells_the_id_too(launch: Launch, log: Log) -> None:
    running = launch()
    request = StreamClassifyRequest(items=[StreamItem(item_id="1", text=POISON)])
    call = running.predictions.StreamClassify(iter([request]), timeout=30, metadata=OWN)
    ((answer,),) = [list(response.answers) for response in call]
    assert answer.message.endswith("request id order-17")
    assert dict(call.trailing_metadata())["x-request-id"] == "order-17"
    until(lambda: bool(log.lines("edgewright.serve.classify_stream")))
    assert log.lines("edgewright.serve.classify_stream")[0]["request_id"] == "order-17"


def test_the_access_log_tells_who_asked_for_what_and_where_the_time_went(
    launch: Launch, log: Log
) -> None:
    running = launch(access_log="all")
    named(running, SECRET, "goal", own=OWN)
    with pytest.raises(grpc.RpcError):
        running.classify(SECRET, model="nobody")
    post(running, "/v1/models/news:classify", {"texts": [SECRET]})
    fine, lost, by_http = log.accesses(3)
    method = "edgewright.v1.PredictionService/ClassifyText"
    expected = {"method": method, "code": "OK", "model": "news", "version": 1, "rows": 2}
    assert expected.items() <= fine.items()
    assert fine["request_id"] == "order-17"
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", fine["caller"])
    stages = [fine[f"{stage}_ms"] for stage in ("queue", "preprocess", "compute", "postprocess")]
    assert all(ms >= 0 for ms in stages)
    assert 0 < sum(stages) <= fine["ms"]
    assert (lost["code"], lost["rows"], "model" in lost) == ("NOT_FOUND", 0, False)
    assert (by_http["method"], by_http["rows"]) == ("http/Classify", 1)
    assert re.fullmatch(r"127\.0\.0\.1:\d+", by_http["caller"])
    assert SECRET not in "".join(log.writer.lines)


def test_the_access_log_names_callers_who_are_known_and_refused(
    launch: Launch, gate: Callable[[], Gate], log: Log, tmp_path: Path
) -> None:
    secret, token = new_token("news-site", [Right.CALL])
    other, scraper = new_token("prometheus", [Right.METRICS])
    (tmp_path / "tokens").write_text(f"{token.line()}\n{scraper.line()}\n")
    running = launch(access_log="all", tokens=tmp_path / "tokens", max_calls_per_caller=1)
    path, body = "/v1/models/news:classify", {"texts": ["bank"]}
    forbidden = post(running, path, body, Authorization=f"Bearer {other}")
    assert forbidden.status == HTTPStatus.FORBIDDEN
    call, held = running.predictions.ClassifyText, gate()
    request, sent = ClassifyTextRequest(texts=["bank"]), [("authorization", f"Bearer {secret}")]
    first = call.future(request, metadata=sent, timeout=60)
    until(lambda: running.server.batcher.queue.rows == 1)
    with pytest.raises(grpc.RpcError):
        call(request, metadata=sent, timeout=60)
    held.open.set()
    assert first.result().classifications
    told = [(line["code"], line["caller"]) for line in log.accesses(3)]
    assert told == [
        ("PERMISSION_DENIED", "prometheus"),
        ("RESOURCE_EXHAUSTED", "news-site"),
        ("OK", "news-site"),
    ]


def test_the_access_log_can_be_of_errors_alone_and_is_off_by_default(
    launch: Launch, log: Log
) -> None:
    quiet, errors = launch(), launch(access_log="errors")
    for running in (quiet, errors):
        named(running, "bank")
        named(running)
    (line,) = log.accesses(1)
    assert line["code"] == "INVALID_ARGUMENT"


def test_a_call_that_its_caller_left_has_a_line(
    launch: Launch, log: Log, gate: Callable[[], Gate]
) -> None:
    running = launch(access_log="errors")
    held = gate()
    call = running.predictions.ClassifyText.future(running.request("bank"), timeout=30)
    assert held.entered.wait(60)
    call.cancel()
    (line,) = log.accesses(1)
    assert line["code"] == "CANCELLED"
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", line["caller"])
    assert "compute_ms" not in line
    held.open.set()


def test_a_stream_that_its_caller_left_while_it_was_answered_has_a_line(
    launch: Launch, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = threading.Event()

    async def answer(*_: Any) -> AsyncIterator[StreamClassifyResponse]:
        asyncio.get_running_loop().call_soon(writing.set)
        # More than is ever under way to a caller that does not read.
        yield StreamClassifyResponse(model="x" * (8 << 20))

    monkeypatch.setattr(PredictionService, "StreamClassify", answer)
    running = launch(access_log="errors")
    call = running.predictions.StreamClassify(iter([]), timeout=60)
    assert writing.wait(30)
    call.cancel()
    (line,) = log.accesses(1)
    assert line["code"] == "CANCELLED"
    assert re.fullmatch(r"ipv4:127\.0\.0\.1:\d+", line["caller"])
    assert running.classify("bank").model == "news"


def test_lines_for_people_end_with_what_json_has_as_fields() -> None:
    record = logging.makeLogRecord(
        {"levelname": "INFO", "name": "edgewright.access", "msg": "done", "fields": {"ms": 1.5}}
    )
    record.ids = {"request_id": "order-17"}
    assert (
        TextFormatter()
        .format(record)
        .endswith("edgewright.access: done request_id=order-17 ms=1.5")
    )


def test_a_reader_that_stalls_holds_nobody_up_and_what_is_lost_is_counted() -> None:
    stalled, writing = threading.Event(), threading.Event()

    class Stalled(Written):
        def emit(self, record: logging.LogRecord) -> None:
            writing.set()
            assert stalled.wait(30)
            super().emit(record)

    writer = Stalled(TextFormatter())
    lost: list[int] = []
    with LogThread(writer, lines=3) as thread:
        thread.dropped = lambda: lost.append(1)
        thread.handle(logging.makeLogRecord({"msg": "0"}))
        assert writing.wait(30)
        for number in range(1, 6):
            thread.handle(logging.makeLogRecord({"msg": str(number)}))
        stalled.set()
    assert len(lost) == 2
    assert [line[-1] for line in writer.lines] == ["0", "1", "2", "3"]
