from __future__ import annotations

import http.client
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .conftest import Launch, LoopThread, Running


def get(running: Running, path: str, method: str = "GET") -> tuple[int, bytes]:
    port = running.server.metrics_port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
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
    assert samples["edgewright_requests_total", "OK", method] == 2
    assert samples["edgewright_request_seconds_count", method] == 2
    assert samples["edgewright_batch_rows_sum", "news"] == 3
    assert samples["edgewright_compute_seconds_count", "news"] >= 2
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
        ("POST", "/", 501),
    ],
)
def test_other_paths_and_methods(launch: Launch, method: str, path: str, status: int) -> None:
    assert get(launch(load=False), path, method)[0] == status


def test_a_connection_that_says_nothing_holds_up_nobody(launch: Launch) -> None:
    running = launch(load=False)
    with socket.create_connection(("127.0.0.1", running.server.metrics_port), timeout=10):
        assert get(running, "/healthz")[0] == 200
