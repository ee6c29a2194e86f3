"""How a server of several processes starts and ends: loading, signals, and processes that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from free_ports import free_port
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from edgewright.repository import Repository
from edgewright.v1.prediction_pb2 import ClassifyTextRequest
from edgewright.v1.prediction_pb2_grpc import PredictionServiceStub

from .bundles import make_bundle
from .families import Family, Start, is_running, page
from .processes import until

CUT_OFF = 6
Loading = Callable[..., tuple[Family, int]]


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Shut while it is there."""
    (tmp_path / "gate").touch()
    return tmp_path / "gate"


@pytest.fixture
def loading(start_two: Start, repository: Path, gate: Path) -> Loading:
    """A server of which one process is held while it loads, and the port of the first's HTTP.

    The second begins to load when the first has loaded.
    """

    def begin(only: int, *options: str, json: bool = False) -> tuple[Family, int]:
        port = free_port(above=1)
        ports = ("--metrics-port", str(port))
        family = start_two(repository, *ports, *options, json=json, gate=gate, only=only)
        until(gate.with_suffix(".entered").exists)
        return family, port

    return begin


def children(family: Family) -> list[int]:
    """Processes that it has started and that run."""
    listed = subprocess.run(
        ["ps", "--ppid", str(family.popen.pid), "-o", "pid="], capture_output=True, text=True
    ).stdout.split()
    return [int(pid) for pid in listed]


def test_none_is_ready_before_all_are(loading: Loading, gate: Path) -> None:
    family, port = loading(1, json=True)
    for number in range(2):
        assert page(port + number, "/readyz")[0] == 503
        assert page(port + number, "/healthz")[0] == 200
    gate.unlink()
    family.announced()
    assert [family.page(number, "/readyz")[0] for number in range(2)] == [200, 200]


@pytest.mark.parametrize("only", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_one_loads_stops_all_with_0(
    loading: Loading, gate: Path, only: int, number: signal.Signals
) -> None:
    family, _ = loading(only)
    family.popen.send_signal(number)
    family.logs("stopped before all processes were ready")
    gate.unlink()
    code, out, err = family.wait()
    assert (code, out) == (0, "")
    assert "Traceback" not in err


def test_a_model_whose_loading_hangs_keeps_no_process(loading: Loading) -> None:
    family, _ = loading(1, "--grace", "0.2")
    pids = children(family)
    family.popen.terminate()
    code, out, err = family.wait()
    assert (code, out) == (CUT_OFF, "")
    assert "did not stop within --grace (0.2 s)" in err
    until(lambda: not any(map(is_running, pids)))


def test_a_second_signal_while_one_loads_ends_all_at_once(loading: Loading) -> None:
    family, _ = loading(1, "--grace", "1000")
    pids = children(family)
    family.popen.terminate()
    family.logs("stopped before all processes were ready")
    family.popen.terminate()
    assert family.wait()[0] == 128 + signal.SIGTERM
    until(lambda: not any(map(is_running, pids)))


def test_signals_that_every_process_gets_are_no_haste(
    start_two: Start, repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    family = start_two(repository, gate=gate).announced()
    gate.touch()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(family.classify)
        until(lambda: sum(family.in_flight()) == 1)
        # As a terminal, or systemd, which sends SIGHUP beside SIGTERM.
        for pid in (*family.pids, family.popen.pid):
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGHUP)
        until(lambda: all(family.page(number, "/readyz")[0] == 503 for number in range(2)))
        assert not call.done()
        gate.unlink()
        assert call.result()
    assert family.wait()[0] == 0


def altered(start_two: Start, tmp_path: Path) -> tuple[Family, Callable[[], None]]:
    """Processes whose bundle was altered once they ran; what is called mends it."""
    Repository(tmp_path / "repository").publish(make_bundle(tmp_path / "bundle"), "news")
    file = tmp_path / "repository" / "news" / "1" / "variants" / "fp32.onnx"

    def flip() -> None:
        content = bytearray(file.read_bytes())
        content[100] ^= 1
        file.write_bytes(bytes(content))

    family = start_two(tmp_path / "repository", "--watch-seconds", "0").announced()
    flip()
    return family, flip


def test_a_process_that_cannot_come_back_is_tried_ever_more_rarely_until_it_can(
    start_two: Start, tmp_path: Path
) -> None:
    family, flip = altered(start_two, tmp_path)
    os.kill(family.pids[1], signal.SIGKILL)
    family.logs("started again in 1 s")
    for pause in (2, 4):
        read = family.logs(f"started again in {pause} s")
        assert "process 1 (pid " in read
        assert "fp32.onnx was altered" in read
        assert "Traceback" not in read
    assert family.classify()
    flip()
    until(lambda: family.page(1, "/readyz")[0] == 200)
    assert len(family.nodes()) == 2
    family.popen.terminate()
    assert family.wait()[0] == 0


def test_one_that_had_died_before_does_not_spoil_the_exit_code(
    start_two: Start, tmp_path: Path
) -> None:
    family, _ = altered(start_two, tmp_path)
    os.kill(family.pids[1], signal.SIGKILL)
    family.logs("started again in 2 s")
    family.popen.terminate()
    assert family.wait()[0] == 0


def test_a_server_none_of_whose_processes_runs_says_so_by_its_exit_code(
    start_two: Start, tmp_path: Path
) -> None:
    family, _ = altered(start_two, tmp_path)
    for pid in family.pids:
        os.kill(pid, signal.SIGKILL)
    for _ in range(2):
        family.logs("started again in 4 s")
    family.popen.terminate()
    assert family.wait()[0] == 4


def test_a_log_that_nobody_reads_keeps_no_process(start_two: Start, repository: Path) -> None:
    reads, writes = os.pipe()
    try:
        with os.fdopen(writes, "w") as pipe:
            family = start_two(repository, "--access-log", "all", stderr=pipe).announced()
        with family.channel() as channel:
            classify = PredictionServiceStub(channel).ClassifyText
            for _ in range(500):  # lines that are more than a pipe holds
                with pytest.raises(grpc.RpcError) as refused:
                    classify(ClassifyTextRequest(model="w" * 200, texts=["bank"]), timeout=60)
                assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # and no deadline
        family.popen.terminate()
        assert family.wait()[0] == 0
        until(lambda: not any(map(is_running, family.pids)))
    finally:
        os.close(reads)


def test_health_is_watched_until_the_process_drains(start_two: Start, repository: Path) -> None:
    family = start_two(repository, "--drain-delay", "1000").announced()
    with family.channel() as one, family.channel() as other:
        watches = [
            HealthStub(each).Watch(HealthCheckRequest(service="news"), timeout=60)
            for each in (one, other)
        ]
        assert [next(each).status for each in watches] == [HealthCheckResponse.SERVING] * 2
        family.popen.terminate()
        assert [next(each).status for each in watches] == [HealthCheckResponse.NOT_SERVING] * 2
        family.popen.terminate()
    assert family.wait()[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("style", ["json", "text"])
def test_every_line_of_the_log_names_its_process(
    start_two: Start, repository: Path, style: str
) -> None:
    port = free_port(above=1)
    options = ("--metrics-port", str(port), "--log-format", style)
    family = start_two(repository, *options, json=False)
    until(lambda: page(port + 1, "/readyz")[0] == 200)
    family.popen.terminate()
    lines = family.wait()[2].splitlines()
    if style == "json":
        told = {(line["process"], line["message"]) for line in map(json.loads, lines)}
    else:
        words = [line.partition(": ")[2].rpartition(" process=") for line in lines]
        told = {(process, message) for message, _, process in words}
    assert {process for process, _ in told} == {"parent", "0", "1"}
    assert {("0", "drained"), ("1", "drained"), ("parent", "draining 2 processes")} <= told
