from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from edgewright.repository import Repository
from edgewright.serve import http_api

from .bundles import LABELS, POISON
from .conftest import Gate, Launch, LoopThread, Running, until
from .image_bundles import make_image_bundle, png


def get(running: Running, path: str, method: str = "GET") -> tuple[int, bytes]:
    port = running.server.metrics_port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_alive_from_the_start_and_ready_from_the_goldens_to_the_drain(
    launch: Launch, loop: LoopThread
) -> None:
    running = launch(load=False)
    assert get(running, "/healthz") == (200, b"OK\n")
    assert get(running, "/readyz") == (503, b"Service Unavailable\n")
    running.load()
    assert get(running, "/readyz") == (200, b"OK\n")
    loop.run(running.server.drain())
    assert get(running, "/readyz")[0] == 503
    assert get(running, "/healthz")[0] == 200


def test_a_dead_compute_thread_is_neither_alive_nor_ready(launch: Launch, loop: LoopThread) -> None:
    running = launch()
    loop.run(running.server.batcher.close())
    assert get(running, "/healthz")[0] == 503
    assert get(running, "/readyz")[0] == 503


def test_a_server_whose_grpc_has_ended_is_neither_alive_nor_ready(
    launch: Launch, loop: LoopThread
) -> None:
    running = launch()
    loop.run(running.server._rpc.stop(None))
    until(lambda: get(running, "/healthz")[0] == 503)
    assert get(running, "/readyz")[0] == 503


def test_metrics_count_and_time_what_happens(launch: Launch) -> None:
    running = launch()
    running.classify("bank shares", "goal")
    running.classify("bank shares")
    status, body = get(running, "/metrics")
    assert status == 200
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    method = "edgewright.v1.PredictionService/ClassifyText"
    assert samples["edgewright_requests_total", "1", "OK", method, "news"] == 2
    assert samples["edgewright_request_seconds_count", "1", method, "news"] == 2
    assert samples["edgewright_batch_rows_sum", "1", "news"] == 3
    assert samples["edgewright_compute_seconds_count", "1", "news"] >= 2
    assert samples[("edgewright_queue_rows",)] == 0
    assert samples[("edgewright_ready",)] == 1
    assert sum(v for k, v in samples.items() if k[0] == "edgewright_predictions_total") == 3
    (info,) = (key for key in samples if key[0] == "edgewright_model_info")
    assert {"news", "1", "onnxruntime-fp32", "PASS"} < set(info)
    assert any(name[0] == "edgewright_build_info" for name in samples)
    assert ("process_cpu_seconds_total",) in samples


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics?x=1", 200),
        ("HEAD", "/healthz", 200),
        ("POST", "/", 404),
        ("POST", "/metrics", 405),
        ("GET", "/v1/models/news:classify", 405),
    ],
)
def test_other_paths_and_methods(launch: Launch, method: str, path: str, status: int) -> None:
    told_status, told = get(launch(load=False), path, method)
    assert told_status == status
    if status != HTTPStatus.OK:
        assert json.loads(told)["reason"] == "INPUT_INVALID"


@pytest.mark.parametrize(
    ("path", "methods"), [("/metrics", "GET, HEAD"), ("/v1/models/news:classify", "POST")]
)
def test_who_asks_in_the_wrong_way_is_told_the_methods_that_there_are(
    launch: Launch, path: str, methods: str
) -> None:
    connection = http.client.HTTPConnection(
        "127.0.0.1", launch(load=False).server.metrics_port, timeout=30
    )
    with contextlib.closing(connection):
        connection.request("DELETE", path)
        assert connection.getresponse().headers["Allow"] == methods


def test_who_asks_in_the_wrong_place_is_told_where_there_is_something(launch: Launch) -> None:
    running = launch()
    told = json.loads(get(running, "/v1/models")[1])["error"]
    assert told.startswith("nothing is at '/v1/models'; ")
    _, *paths = re.findall(r"/[\w/:]+", told.replace("MODEL", "news"))
    posts = {path for path in paths if get(running, path)[0] == HTTPStatus.METHOD_NOT_ALLOWED}
    assert posts == {"/v2/models/news/infer", "/v1/models/news:classify"}
    assert {get(running, path)[0] for path in set(paths) - posts} == {HTTPStatus.OK}


@pytest.mark.parametrize(
    "accept",
    ["text/plain;version=x", "text/plain;version=", "application/openmetrics-text;version=1.x",
     "text/plain;version", ";;,=", "application/openmetrics-text;version=0.0.1"],
)  # fmt: skip
def test_metrics_are_plain_text_for_whoever_asks_for_what_there_is_not(
    launch: Launch, accept: str
) -> None:
    connection = http.client.HTTPConnection(
        "127.0.0.1", launch(load=False).server.metrics_port, timeout=30
    )
    with contextlib.closing(connection):
        connection.request("GET", "/metrics", headers={"Accept": accept})
        response = connection.getresponse()
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert b"edgewright_ready" in response.read()


def test_a_fault_of_a_page_is_an_answer_and_logged(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_accept: str) -> None:
        raise RuntimeError("no such encoder")

    monkeypatch.setattr(http_api, "choose_encoder", fail)
    status, told = get(launch(load=False), "/metrics")
    assert status == 500
    assert "request id" in json.loads(told)["error"]
    assert "no such encoder" not in told.decode()
    assert "/metrics failed" in caplog.text


def test_a_connection_that_says_nothing_holds_up_nobody(launch: Launch) -> None:
    running = launch(load=False)
    with socket.create_connection(("127.0.0.1", running.server.metrics_port), timeout=30):
        assert get(running, "/healthz")[0] == 200


def post(
    running: Running, path: str, body: Any, headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Status, the JSON told, and the headers."""
    port = running.server.metrics_port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), dict(response.getheaders())
    finally:
        connection.close()


def text(*texts: Any, **more: Any) -> dict[str, Any]:
    given = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
    return {"inputs": [{**given, **more}]}


INFER = "/v2/models/news/infer"
CLASSIFY = "/v1/models/news:classify"


def test_tensors_in_json_get_the_answers_of_the_typed_api(launch: Launch) -> None:
    running = launch()
    typed = running.classify("bank shares", "team wins").classifications
    asked = {**text("bank shares", "team wins"), "id": "7"}
    status, told, _ = post(running, "/v2/models/news/versions/1/infer", asked)
    assert (status, told["model_name"], told["model_version"], told["id"]) == (
        200,
        "news",
        "1",
        "7",
    )
    outputs = {each["name"]: each for each in told["outputs"]}
    assert outputs["label"]["data"] == [each.label for each in typed]
    assert outputs["scores"]["shape"] == [2, 3]
    assert outputs["score"]["data"] == pytest.approx([each.score for each in typed], abs=1e-6)
    rows = {"name": "input_ids", "datatype": "INT64", "shape": [1, 3], "data": [[2, 4, 3]]}
    mask = {**rows, "name": "attention_mask", "data": [1, 1, 1]}
    wanted = [{"name": "scores", "parameters": {"classification": 1}}]
    status, told, _ = post(running, INFER, {"inputs": [rows, mask], "outputs": wanted})
    assert (status, told["outputs"][0]["shape"]) == (200, [1, 1])


def test_plain_json_is_classified(launch: Launch, tmp_path: Path) -> None:
    running = launch()
    typed = running.classify("bank shares", top_k=2).classifications[0]
    status, told, _ = post(running, CLASSIFY, {"texts": ["bank shares"], "top_k": 2})
    (answer,) = told["classifications"]
    assert (status, told["model"], told["version"]) == (200, "news", 1)
    assert (answer["label"], answer["truncated"]) == (typed.label, False)
    assert [each["label"] for each in answer["scores"]] == [each.label for each in typed.scores]
    assert len(answer["prediction_id"]) == 36
    Repository(tmp_path / "r").publish(make_image_bundle(tmp_path / "b"), "colours")
    colours = launch(tmp_path / "r")
    picture = base64.b64encode(png((0, 0, 200))).decode()
    _, told, _ = post(colours, "/v1/models/colours:classify", {"images": [picture]})
    assert told["classifications"][0]["label"] == "blue"
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [picture]}
    _, told, _ = post(colours, "/v2/models/colours/infer", {"inputs": [image]})
    assert told["outputs"][0]["data"] == ["blue"]
    for wrapped in (f"data:image/png;base64,{picture}", f"{picture[:40]}\n{picture[40:]}"):
        status, told, _ = post(colours, "/v1/models/colours:classify", {"images": [wrapped]})
        assert (status, told["reason"]) == (400, "INPUT_INVALID")
        assert "images[0] is no base64" in told["error"]
        assert "without `data:...,` before it and without line breaks" in told["error"]


def test_what_a_model_takes_is_told(launch: Launch) -> None:
    running = launch()
    told = json.loads(get(running, "/v2/models/news")[1])
    assert told["versions"] == ["1"]
    assert told["inputs"][0] == {"name": "text", "datatype": "BYTES", "shape": [-1, 1]}
    assert told["outputs"][2] == {"name": "scores", "datatype": "FP32", "shape": [-1, len(LABELS)]}
    assert json.loads(get(running, "/v2")[1])["name"] == "edgewright"
    for path, status in {
        "/v2/health/live": 200, "/v2/health/ready": 200, "/v2/models/news/ready": 200,
        "/v2/models/news/versions/1/ready": 200, "/v2/models/news/versions/2/ready": 503,
        "/v2/models/x/ready": 503, "/v2/models/x": 404, "/v2/models/news/versions/a": 400,
        "/v2/models/..%2f..%2fetc%2fpasswd": 404, "/v2/models/%ff": 404,
    }.items():  # fmt: skip
        assert get(running, path)[0] == status, path
    of_no_number = json.loads(get(running, "/v2/models/news/versions/a/ready")[1])
    assert of_no_number["reason"] == "INPUT_INVALID"


BAD = {
    "no JSON": (INFER, b"{", 400, "the body is no JSON"),
    "no UTF-8": (INFER, b'{"a": "\xff"}', 400, "no JSON"),
    "NaN": (CLASSIFY, b'{"texts": [NaN]}', 400, "NaN is no JSON number"),
    "a long number": (CLASSIFY, b'{"top_k": ' + b"9" * 5000 + b"}", 400, "the body is no JSON"),
    "deep": (INFER, b"[" * 100_000, 400, "nested too deeply"),
    "a field twice": (CLASSIFY, b'{"texts": ["a"], "texts": ["b"]}', 400, "'texts' is given twice"),
    "twice within": (INFER, b'{"inputs": [{"name": 1, "name": "text"}]}', 400, "given twice"),
    "no object": (INFER, [], 400, "no JSON object"),
    "no inputs": (INFER, {}, 400, "inputs is missing; a JSON array is expected"),
    "a field": (INFER, {**text("a"), "x": 1}, 400, "no field 'x'"),
    "an input": (INFER, {"inputs": [3]}, 400, "inputs holds 3"),
    "a number": (INFER, text(3), 400, "text[0] is 3; a string is expected"),
    "half a pair": (INFER, text("\ud800"), 400, "not valid Unicode"),
    "mixed rows": (INFER, text(["a"], "b"), 400, "rows and single elements mixed"),
    "rows of two lengths": (INFER, text(["a", "b", "c"], ["d"], shape=[4]), 400, "equally long"),
    "count": (INFER, text("a", "b", shape=[3]), 400, "has 2 elements"),
    "a side": (INFER, text("a", shape=[1.0]), 400, "whole numbers are expected"),
    "a side of 4,000 digits": (
        INFER, {"inputs": [{"name": n, "datatype": "INT64", "shape": [256, 10**4299], "data": [1]}
                           for n in ("input_ids", "attention_mask")]}, 400, "whole numbers",
    ),
    "binary": (
        INFER, {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1],
                            "parameters": {"binary_data_size": 9}}]}, 400, "0 bytes are left",
    ),
    "a float token": (
        INFER, {"inputs": [{"name": n, "datatype": "INT64", "shape": [1, 1], "data": [1.5]}
                           for n in ("input_ids", "attention_mask")]}, 400, "holds 1.5 at 0",
    ),
    "a large token": (
        INFER, {"inputs": [{"name": n, "datatype": "INT64", "shape": [1, 1], "data": [2**70]}
                           for n in ("input_ids", "attention_mask")]}, 400, "that INT64 cannot",
    ),
    "no texts": (CLASSIFY, {}, 400, "give texts: [...]"),
    "images": (CLASSIFY, {"images": []}, 400, "news classifies texts"),
    "empty": (CLASSIFY, {"texts": []}, 400, "texts is empty"),
    "top_k": (CLASSIFY, {"texts": ["a"], "top_k": True}, 400, "top_k is True"),
    "10 MB": (CLASSIFY, {"texts": ["x" * 10_000_000]}, 400, "at most 100000 are taken"),
    "unknown": ("/v1/models/wine:classify", {"texts": ["a"]}, 404, "no model 'wine'"),
    "a version": (CLASSIFY, {"texts": ["a"], "version": 9}, 404, "version 9"),
    "no number": (CLASSIFY, {"texts": [POISON]}, 500, "internal error"),
}  # fmt: skip


@pytest.fixture(scope="module")
def served(loop: LoopThread, repository: Path) -> Any:
    """One server for all the bad requests."""
    from edgewright.serve.config import ServeConfig
    from edgewright.serve.server import Server

    async def build() -> Server:
        server = Server(ServeConfig(repository, "127.0.0.1", port=0, metrics_port=0))
        await server.start()
        await server.load()
        return server

    server = loop.run(build())
    yield Running(server, None, loop)  # type: ignore[arg-type]  # no gRPC here
    loop.run(server.__aexit__(None, None, None))


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_gets_its_status_and_is_told_why(served: Running, case: str) -> None:
    path, body, status, message = BAD[case]
    found, told, _ = post(served, path, body)
    assert found == status
    assert message in told["error"]


def test_a_timeout_is_honoured(served: Running) -> None:
    asked = {"texts": ["a"]}
    status, told, _ = post(served, CLASSIFY, asked, {"X-Timeout-Ms": "0"})
    assert (status, told["reason"]) == (504, "DEADLINE")
    assert post(served, CLASSIFY, asked, {"X-Timeout-Ms": "soon"})[0] == 400
    assert post(served, CLASSIFY, asked, {"X-Timeout-Ms": "30000"})[0] == 200
    assert post(served, INFER, {**text("a"), "parameters": {"timeout": 1}})[0] == 504


def test_a_full_queue_and_a_drain_say_when_and_where_to_go(
    launch: Launch, gate: Callable[[], Gate], loop: LoopThread
) -> None:
    running = launch(queue_size=2, max_texts=2)
    held = gate()
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(post, running, CLASSIFY, {"texts": ["bank"] * 2})
        until(held.entered.is_set)
        assert running.metric("edgewright_requests_in_flight") == 1
        status, told, headers = post(running, CLASSIFY, {"texts": ["goal"]})
        assert (status, told["reason"]) == (429, "QUEUE_FULL")
        assert int(headers["Retry-After"]) >= 1
        drained = pool.submit(loop.run, running.server.drain())
        until(lambda: post(running, CLASSIFY, {"texts": ["goal"]})[0] == 503)
        assert not drained.done()
        held.open.set()
        assert waiting.result()[0] == 200
        drained.result()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
TENSORS = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["text", "input_ids", "attention_mask"]) | JSON_VALUES,
        "datatype": st.sampled_from(["BYTES", "INT64"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON_VALUES,
        "data": st.lists(st.text(max_size=3) | st.integers(0, 19), max_size=3) | JSON_VALUES,
    },
    optional={"parameters": JSON_VALUES},
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    given=st.fixed_dictionaries({"inputs": st.lists(TENSORS, max_size=2) | JSON_VALUES})
    | st.fixed_dictionaries({"texts": JSON_VALUES}, optional={"top_k": JSON_VALUES})
    | JSON_VALUES,
    path=st.sampled_from([INFER, CLASSIFY]),
)
def test_no_made_up_json_is_an_internal_error(served: Running, given: Any, path: str) -> None:
    assert post(served, path, given)[0] in (200, 400)
