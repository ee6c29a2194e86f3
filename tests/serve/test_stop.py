"""How a server's process ends: signals, the drain, the grace, and what hangs."""

from __future__ import annotations

import os
import queue
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from edgewright.repository import Repository
from edgewright.serve import grace
from edgewright.serve.config import ServeConfig
from edgewright.v1.prediction_pb2 import (
    ClassifyImageRequest,
    ClassifyTextRequest,
    StreamClassifyRequest,
    StreamItem,
)
from edgewright.v1.prediction_pb2_grpc import PredictionServiceStub

from . import losing
from .image_bundles import make_image_bundle, png
from .processes import FREE_PORTS, Gate, Start, classify, page, until

Code = grpc.StatusCode
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
CUT_OFF = 6


@pytest.fixture
def held(tmp_path: Path) -> Gate:
    """Open at first."""
    return Gate(tmp_path / "gate")


@pytest.fixture
def repository_of_one(tmp_path: Path, bundle: Path) -> Path:
    """As ``repository``, to be changed."""
    Repository(tmp_path / "repository").publish(bundle, "news")
    return tmp_path / "repository"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_finishes_what_is_in_flight(
    start: Start, repository: Path, held: Gate, number: signal.Signals
) -> None:
    process = start(str(repository), *FREE_PORTS, "--json", gate=held)
    told = process.ready()
    held.shut()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(classify, told["port"])
        until(held.reached)
        process.popen.send_signal(number)
        until(lambda: page(told["metrics_port"], "/readyz")[0] == 503)
        assert not call.done()
        held.open()
        assert call.result().classifications
    assert process.wait()[0] == 0


def test_a_server_that_lost_what_grpc_told_it_drains_and_says_why(
    start: Start, repository: Path
) -> None:
    process = start(str(repository), *FREE_PORTS, "--json", without=losing)
    port = process.ready()["port"]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        release = threading.Event()
        messages = endless(release)
        stream = PredictionServiceStub(channel).StreamClassify(messages, timeout=60)
        assert next(stream).answers
        lost = channel.unary_unary(losing.LOST).future(b"", timeout=60)
        with pytest.raises(grpc.RpcError) as failed:
            next(stream)
        assert failed.value.code() is Code.UNAVAILABLE
        assert "go on with another replica" in failed.value.details()
        assert lost.code() is Code.UNAVAILABLE
        release.set()
    code, _, err = process.wait()
    assert code == CUT_OFF
    assert "MemoryError" in err
    assert "error: calls by gRPC can be taken no longer" in err


def endless(release: threading.Event) -> Iterator[StreamClassifyRequest]:
    yield StreamClassifyRequest(items=[StreamItem(text="bank")])
    release.wait(60)


def test_it_is_not_ready_before_it_refuses_calls(start: Start, repository: Path) -> None:
    process = start(str(repository), *FREE_PORTS, "--json", "--drain-delay", "1000")
    told = process.ready()
    with grpc.insecure_channel(f"127.0.0.1:{told['port']}") as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=60)
        assert next(watch).status == SERVING
        process.popen.terminate()
        assert next(watch).status == NOT_SERVING
        assert page(told["metrics_port"], "/readyz")[0] == 503
        assert page(told["metrics_port"], "/healthz")[0] == 200
        assert classify(told["port"]).classifications
        process.popen.terminate()
    assert process.wait()[0] == 128 + signal.SIGTERM


def test_a_delay_that_is_over_is_followed_by_the_drain(start: Start, repository: Path) -> None:
    process = start(str(repository), *FREE_PORTS, "--json", "--drain-delay", "0.2")
    process.ready()
    process.popen.terminate()
    assert process.wait() == (0, "", "")


def test_a_stream_that_is_open_is_answered_and_ended(start: Start, repository: Path) -> None:
    process = start(str(repository), *FREE_PORTS, "--json", "--grace", "1000")
    told = process.ready()
    messages: queue.Queue[StreamClassifyRequest] = queue.Queue()
    with grpc.insecure_channel(f"127.0.0.1:{told['port']}") as channel:
        answers = PredictionServiceStub(channel).StreamClassify(iter(messages.get, None))
        messages.put(StreamClassifyRequest(items=[StreamItem(text="bank")]))
        assert next(answers).answers[0].classification.label
        process.popen.terminate()
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
        assert ended.value.code() is Code.UNAVAILABLE
        messages.put(None)  # type: ignore[arg-type]  # the end, for the thread that reads them
        assert process.wait()[0] == 0


def test_a_second_signal_ends_it_at_once(start: Start, repository: Path, held: Gate) -> None:
    process = start(str(repository), *FREE_PORTS, "--json", "--grace", "1000", gate=held)
    told = process.ready()
    held.shut()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(classify, told["port"])
        until(held.reached)
        process.popen.terminate()
        until(lambda: page(told["metrics_port"], "/readyz")[0] == 503)
        process.popen.terminate()
        assert process.wait()[0] == 128 + signal.SIGTERM
        assert isinstance(call.exception(), grpc.RpcError)


@pytest.mark.parametrize(
    ("first", "second"),
    [(signal.SIGTERM, signal.SIGHUP), (signal.SIGHUP, signal.SIGTERM)],
)
def test_a_hangup_beside_another_signal_is_no_haste(
    start: Start, repository: Path, held: Gate, first: signal.Signals, second: signal.Signals
) -> None:
    process = start(str(repository), *FREE_PORTS, "--json", gate=held)
    told = process.ready()
    held.shut()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(classify, told["port"])
        until(held.reached)
        process.popen.send_signal(first)
        until(lambda: page(told["metrics_port"], "/readyz")[0] == 503)
        process.popen.send_signal(second)
        assert page(told["metrics_port"], "/healthz")[0] == 200
        held.open()
        assert call.result().classifications
    assert process.wait()[0] == 0


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_hangup_that_is_ignored_ends_nothing(
    repository: Path, start: Start, processes: str
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        process = start(str(repository), *FREE_PORTS, "--json", "--processes", processes)
    finally:
        signal.signal(signal.SIGHUP, before)
    told = process.ready()
    for pid in (process.popen.pid, *(each["pid"] for each in told.get("processes", ()))):
        os.kill(pid, signal.SIGHUP)
    assert classify(told["port"]).classifications
    assert page(told["metrics_port"], "/readyz")[0] == 200
    process.popen.terminate()
    assert process.wait()[0] == 0


def test_calls_that_outlast_the_grace_are_ended_and_the_exit_code_says_so(
    start: Start, repository: Path, held: Gate
) -> None:
    process = start(str(repository), *FREE_PORTS, "--json", "--grace", "0.2", gate=held)
    told = process.ready()
    held.shut()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(classify, told["port"])
        until(held.reached)
        process.popen.terminate()
        failure = call.exception()
        assert isinstance(failure, grpc.RpcError)
        assert failure.code() in (Code.CANCELLED, Code.UNAVAILABLE)
    held.open()
    code, _, err = process.wait()
    assert code == CUT_OFF
    assert "1 calls were not finished within --grace (0.2 s); they are ended" in err
    assert "Traceback" not in err


def test_a_compute_thread_that_hangs_keeps_no_process(
    start: Start, repository: Path, held: Gate
) -> None:
    process = start(str(repository), *FREE_PORTS, "--json", "--grace", "0.2", gate=held)
    told = process.ready()
    held.shut()
    with grpc.insecure_channel(f"127.0.0.1:{told['port']}") as channel:
        request = ClassifyTextRequest(texts=["bank"])
        call = PredictionServiceStub(channel).ClassifyText.future(request, timeout=60)
        until(held.reached)
        call.cancel()  # nobody waits for it any more
    process.popen.terminate()
    code, _, err = process.wait()
    assert code == CUT_OFF
    assert "did not stop within --grace (0.2 s): still at work is" in err
    assert re.search(r"compute-\d \(held", err)  # whichever was idle


def test_what_ends_a_process_needs_no_thread_that_python_3_12_would_not_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It starts none once the main thread has ended and waits for one that hangs."""
    start = threading.Thread.start

    def start_in_time(thread: threading.Thread) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("can't create new thread at interpreter shutdown")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_in_time)
    monkeypatch.setattr(grace, "LAST_S", 0.0)
    log_thread: Any = SimpleNamespace(close=lambda: None)
    left: queue.SimpleQueue[int] = queue.SimpleQueue()
    config = ServeConfig(Path("repository"), grace_s=0.0)
    grace.Grace(config, log_thread, left.put).begin()
    assert left.get(timeout=60) == CUT_OFF
    assert "did not stop within --grace (0 s): still at work is" in caplog.text


def test_an_image_whose_decoding_hangs_keeps_no_process(start: Start, tmp_path: Path) -> None:
    held = Gate(tmp_path / "gate", "decode")
    Repository(tmp_path / "repository").publish(make_image_bundle(tmp_path / "bundle"), "pets")
    place = str(tmp_path / "repository")
    process = start(place, *FREE_PORTS, "--json", "--grace", "0.2", gate=held)
    port = process.ready()["port"]
    held.shut()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = ClassifyImageRequest(images=[png((0, 0, 200))])
        call = PredictionServiceStub(channel).ClassifyImage.future(request, timeout=60)
        until(held.reached)
        call.cancel()
    process.popen.terminate()
    code, _, err = process.wait()
    assert code == CUT_OFF
    assert "decode_0 (held" in err


def test_a_signal_while_it_loads_stops_it_with_0(
    start: Start, repository: Path, held: Gate
) -> None:
    held.shut()
    process = start(str(repository), *FREE_PORTS, gate=held)
    until(held.reached)
    process.popen.terminate()
    process.logs("stopped before any model was ready")
    held.open()
    code, out, _ = process.wait()
    assert (code, out) == (0, "")


def test_a_model_whose_loading_hangs_keeps_no_process(
    start: Start, repository: Path, held: Gate
) -> None:
    held.shut()
    process = start(str(repository), *FREE_PORTS, "--grace", "0.2", gate=held)
    until(held.reached)
    process.popen.terminate()
    code, out, err = process.wait()
    assert (code, out) == (CUT_OFF, "")
    assert "did not stop within --grace (0.2 s)" in err
    assert "(held, " in err


def test_a_reload_that_hangs_keeps_no_process_and_is_named(
    start: Start, repository_of_one: Path, bundle: Path, held: Gate
) -> None:
    options = ("--json", "--grace", "0.2", "--watch-seconds", "0.05")
    process = start(str(repository_of_one), *FREE_PORTS, *options, gate=held)
    process.ready()
    held.shut()
    Repository(repository_of_one).publish(bundle, "news")
    until(held.reached)
    process.popen.terminate()
    code, _, err = process.wait()
    assert code == CUT_OFF
    assert "did not stop within --grace (0.2 s): still at work is" in err
    assert re.search(r"background_\d \(held", err)
    assert "cannot be loaded" not in err


def test_a_reload_in_progress_costs_no_stop_its_exit_code(
    start: Start, repository_of_one: Path, bundle: Path, held: Gate
) -> None:
    options = ("--json", "--watch-seconds", "0.05", "--drain-delay", "2")
    process = start(str(repository_of_one), *FREE_PORTS, *options, gate=held)
    port = process.ready()["metrics_port"]
    held.shut()
    Repository(repository_of_one).publish(bundle, "news")
    until(held.reached)
    process.popen.terminate()
    until(lambda: page(port, "/readyz")[0] == 503)
    held.open()
    code, out, err = process.wait()
    assert (code, out) == (0, "")
    assert "cannot be loaded" not in err


def test_a_second_signal_while_it_loads_ends_it_at_once(
    start: Start, repository: Path, held: Gate
) -> None:
    held.shut()
    process = start(str(repository), *FREE_PORTS, "--grace", "1000", gate=held)
    until(held.reached)
    process.popen.terminate()
    process.logs("stopped before any model was ready")
    process.popen.terminate()
    assert process.wait()[0] == 128 + signal.SIGTERM
