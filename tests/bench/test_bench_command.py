"""``edgewright bench`` as a shell sees it, against a server that does as a test says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer
from free_ports import silent_port

from edgewright.bench.config import BenchConfig, Closed, Load, Protocol
from edgewright.bench.inputs import synthetic_texts
from edgewright.bench.processes import processes
from edgewright.bench.requests import edgewright_requests
from edgewright.bench.result import Result
from edgewright.bench.subject import Asked, prepare
from edgewright.cli import run
from edgewright.connection import Connection
from edgewright.errors import ConfigError, EdgewrightError, NotReadyError, OverloadedError
from edgewright.v1 import model_pb2

SHORT = ("--duration", "0.5", "--warm-up", "0.1")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


def bench(server: FakeServer, *arguments: str | Path) -> int:
    return run(["bench", server.target, *map(str, arguments)])


def connection_to(server: FakeServer, timeout_s: float = 30.0) -> Connection:
    return Connection(server.target, timeout_s, 0, None, 1 << 20, time.monotonic)


def shape_of(value: Any) -> Any:
    """The names in a JSON value; of a list, its first element's."""
    if isinstance(value, dict):
        return {name: shape_of(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape_of(value[0])] if value and isinstance(value[0], dict) else []
    return None


LATENCY = dict.fromkeys(
    ("calls", "min", "mean", "p50", "p90", "p99", "p99_9", "p99_99", "max"), None
)
CALLS = ("due", "answered", "refused", "failed", "unsent", "unfinished", "held_back")
RESULT = {
    "load": {"loop": None, "rate": None, "arrivals": None},
    "seconds": None,
    "calls": dict.fromkeys(CALLS, None),
    **dict.fromkeys(("answered_share", "calls_per_s", "rows_per_s", "ended_per_s"), None),
    "response_ms": LATENCY,
    "service_ms": LATENCY,
    "errors": [],
    "histogram": {"at_most_ms": [], "calls": []},
    "halves": {"calls_per_s": [], "p50_ms": []},
    "steady": None,
    "generator": {"kept_up": None, "cpu": None, "waited_for_cpu": None, "lag_ms": LATENCY},
    "warnings": [],
}
RECORD = {
    **dict.fromkeys(("edgewright", "began", "target", "protocol"), None),
    "model": dict.fromkeys(
        ("name", "version", "task", "variant", "runtime", "manifest_sha256"), None
    ),
    **dict.fromkeys(("inputs", "rows_per_call", "requests", "request_bytes"), None),
    **dict.fromkeys(("duration_s", "warm_up_s", "deadline_ms", "processes", "seed"), None),
    "host": {"name": None, "machine": None, "cores": None},
    "results": [RESULT],
    "search": None,
    "interrupted": None,
}


def test_json_is_one_object_of_a_known_shape(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--rate", "60,90", "--rows-per-call", "2", "--processes", "2", "--json")
    assert bench(server, *SHORT, *arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert shape_of(record) == RECORD
    assert list(record) == list(RECORD)
    first, second = record["results"]
    # The schedule alone decides how many calls are due: in 0.5 s after 0.1 s.
    assert (first["calls"]["due"], second["calls"]["due"]) == (30, 45)
    assert first["calls"]["answered"] == 30
    assert first["generator"]["cpu"] > 0
    assert sum(first["histogram"]["calls"]) == 30
    assert first["rows_per_s"] == pytest.approx(2 * first["calls_per_s"])
    assert record["model"]["name"] == "news"
    assert record["inputs"] == "synthetic texts of 12 words"
    sent = [each for each in server.requests if hasattr(each, "texts")]
    assert {len(each.texts) for each in sent} == {2}
    assert {each.model for each in sent} == {"news"}


def test_a_person_gets_a_table_and_files_hold_the_same(
    server: FakeServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = ("-o", tmp_path / "run.json", "-o", tmp_path / "run.html")
    assert bench(server, *SHORT, "--concurrency", "1,3", "--quiet", *files) == 0
    told = capsys.readouterr().out
    record = json.loads((tmp_path / "run.json").read_text())
    assert told.splitlines()[0] == f"{server.target}: news version 1, {record['inputs']}, 1 a call"
    for load, result in zip(("1 caller ", "3 callers"), record["results"], strict=True):
        (row,) = [line for line in told.splitlines() if line.startswith(load)]
        assert f" {result['calls_per_s']:.1f} " in row
        assert row.endswith(f" {result['calls']['answered']}")
    page = (tmp_path / "run.html").read_text()
    assert page.count("<svg") == 3
    for words in ("Closed loop", "1 caller", "3 callers", "Latency by percentile", "synthetic"):
        assert words in page
    assert bench(server, *SHORT, *files) == 2
    assert capsys.readouterr().err.count("exists already") == 2


def test_texts_of_a_file_are_sent_in_turn(server: FakeServer, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\nZürich won,sport\nShares rose,business\n")
    # By a schedule, so that it is no matter of speed how many there are.
    assert bench(server, *SHORT, "--data", rows, "--rate", "60") == 0
    sent = [list(each.texts) for each in server.requests if hasattr(each, "texts")]
    # The first is tried once beforehand; of calls side by side either may arrive first.
    assert sorted(sent[1:]) == [["Shares rose"]] * 18 + [["Zürich won"]] * 18


def test_a_model_of_images_gets_images(server: FakeServer) -> None:
    server.models[0].task = "image-classification"
    assert bench(server, *SHORT, "--concurrency", "2", "--image-size", "16") == 0
    images = [each.images[0] for each in server.requests if hasattr(each, "images")]
    assert images[0].startswith(b"\x89PNG")


def test_refused_calls_are_told_apart_with_their_reason(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = iter(range(10**9))

    def refuse(request: Any) -> OverloadedError | None:
        is_call = hasattr(request, "texts") and next(texts) > 0
        return OverloadedError("the queue is full", retry_after_s=0.1) if is_call else None

    server.refuse = refuse
    assert bench(server, *SHORT, "--rate", "60", "--json") == 6
    told, notes = capsys.readouterr()
    (result,) = json.loads(told)["results"]
    assert (result["calls"]["refused"], result["calls"]["answered"]) == (30, 0)
    (error,) = result["errors"]
    assert (error["code"], error["reason"]) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert error["message"] == "the queue is full"
    assert "answered no call" in notes


def test_a_deadline_reaches_the_server_and_is_counted(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(request: Any) -> None:
        if len(server.requests) > 2:
            server.hold.clear()

    server.refuse = refuse
    assert bench(server, *SHORT, "--rate", "20", "--deadline-ms", "150", "--json") in (0, 6)
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert [each["code"] for each in result["errors"]] == ["DEADLINE_EXCEEDED"]
    assert 0 < min(each or 9 for each in server.time_remaining_s[2:]) <= 0.15


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "mail"], 4, "no model 'mail'"),
        (["--rate", "1", "--concurrency", "1"], 2, "choose one kind of load"),
        (["--rate", "1,,2"], 2, "numbers with commas"),
        (["--rate", "0"], 2, "above 0"),
        (["--concurrency", "nan"], 2, "numbers with commas"),
        (["--concurrency", "0"], 2, "1 to 10000"),
        (["--duration", "nan", "--warm-up", "inf"], 2, "--warm-up is inf"),
        (["--p99-ms", "5"], 2, "give --find-rate too"),
        (["--text", "a", "--image", "b.png"], 2, "give one kind of input"),
        (["--text-column", "a"], 2, "give --data too"),
        (["--image", "none.png"], 2, "none.png: no such file"),
        (["--image", "."], 2, "--image .: is a folder; give its files, each with an --image"),
        (["--image", __file__], 2, "classifies texts, and images are given"),
        (["--data", "none.csv"], 2, "none.csv: cannot be read"),
        (["--data", "none.xls"], 2, "'.xls' is not known"),
        (["-o", "report.pdf"], 2, ".html or .json"),
        (["-o", "no/such/folder.json"], 2, "is no folder"),
        (["--protocol", "oip"], 2, "wants the model's name"),
        (["--processes", "0"], 2, "1 to 64"),
        (["--processes", "9" * 400], 2, f"--processes is {'9' * 20}...; it must be 1 to 64"),
        (["--rows-per-call", "0"], 2, "--rows-per-call is 0; it must be 1 to 100000"),
        (["--rows-per-call", "100001"], 2, "--rows-per-call is 100001; it must be 1 to 100000"),
        (["--find-rate", "--p99-ms", "nan"], 2, "--p99-ms is nan; it must be above 0"),
        (["--find-rate", "--p99-ms", "inf"], 2, "--p99-ms is inf; it must be above 0"),
        (["--find-rate", "--p99-ms", "0"], 2, "--p99-ms is 0; it must be above 0"),
    ],
)
def test_what_cannot_work_is_told_before_any_load(
    server: FakeServer,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert bench(server, *arguments) == code
    told, notes = capsys.readouterr()
    assert told == ""
    assert message in notes
    assert "Traceback" not in notes
    assert not [each for each in server.requests if hasattr(each, "texts")]


def test_nothing_listening_is_exit_6_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with silent_port() as port:
        assert run(["bench", f"127.0.0.1:{port}", "--duration", "1000"]) == 6
    assert f"no gRPC server answers at 127.0.0.1:{port}" in capsys.readouterr().err


def test_a_server_of_another_protocol_is_told_with_the_option_that_helps(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(server, "--model", "news", "--protocol", "oip") == 6
    assert "does not speak the Open Inference Protocol" in capsys.readouterr().err


def prepared(server: FakeServer, rows: int = 1) -> None:
    asked = Asked("news", rows, lambda kind: synthetic_texts(3, 0))
    prepare(Protocol.EDGEWRIGHT, connection_to(server), asked)


def test_a_model_that_still_loads_and_a_wrong_first_answer_are_told(server: FakeServer) -> None:
    prepared(server, rows=3)
    server.most_answers = 2
    with pytest.raises(EdgewrightError, match="the first call had 3 rows, its answer 2"):
        prepared(server, rows=3)
    server.models[0].state = model_pb2.MODEL_STATE_LOADING
    with pytest.raises(NotReadyError, match="news is loading"):
        prepared(server)
    with pytest.raises(ConfigError, match="classifies texts, and images"):
        server.models[0].state = model_pb2.MODEL_STATE_READY
        asked = Asked("news", 1, lambda kind: type(synthetic_texts(1, 0))([b"x"], "images"))
        prepare(Protocol.EDGEWRIGHT, connection_to(server), asked)


class Mortal:
    """A server that dies with calls in flight and comes back; each step waits for what it needs."""

    def __init__(self) -> None:
        self.first = FakeServer().__enter__()
        self.second: FakeServer | None = None
        self.held_from: int | None = None

    def watch(self, _load: Load, _seconds: float) -> bool:
        """The next step; False once the second server has been called."""
        arrived = len(self.first.requests)
        if self.second is not None:
            return len(self.second.requests) <= 20
        if self.held_from is None and arrived > 20:
            self.first.hold.clear()
            self.held_from = len(self.first.requests)
        elif self.held_from is not None and arrived > self.held_from:
            self.first.die()
            self.second = FakeServer(self.first.port).__enter__()
        return True


def test_a_server_that_dies_is_counted_and_found_again_when_it_is_back() -> None:
    server = Mortal()
    requests = edgewright_requests(synthetic_texts(3, 0), 1, "news")
    config = BenchConfig((), duration_s=600, warm_up_s=0)
    with processes(connection_to(server.first), requests, config, server.watch) as crew:
        measured = crew.run(Closed(3))
    assert server.second is not None
    server.second.__exit__()
    tally = measured.tally
    assert measured.interrupted
    assert tally.answered >= 35
    assert tally.failed >= 1
    for (code, _), gone in tally.failures.items():
        assert code in ("UNAVAILABLE", "CANCELLED")
        assert 0 < gone.first_s <= gone.last_s <= measured.window.end - measured.window.start
    assert any("broken off" in each for each in Result(measured, 1).warnings())


def test_ctrl_c_ends_the_run_and_tells_what_was_measured(server: FakeServer) -> None:
    command = [
        sys.executable, "-m", "edgewright", "bench", server.target, "--json", "--warm-up", "0",
        "--duration", "3600", "--concurrency", "2,4",
    ]  # fmt: skip
    called = threading.Event()

    def note(request: Any) -> None:
        if len(server.requests) > 200:
            called.set()

    server.refuse = note
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert called.wait(120)
            process.send_signal(signal.SIGINT)
            told, notes = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, notes
    record = json.loads(told)
    assert record["interrupted"] is True
    (result,) = record["results"]
    assert result["load"] == {"loop": "closed", "callers": 2}
    assert result["calls"]["answered"] >= 190
    assert 0 < result["seconds"] < 3600
    assert "Traceback" not in notes


def test_a_process_that_makes_load_hears_no_ctrl_c_while_it_starts(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = SpawnProcess.start

    def interrupted(process: SpawnProcess) -> None:
        start(process)
        os.kill(process.pid or 0, signal.SIGINT)  # as a terminal does to all

    monkeypatch.setattr(SpawnProcess, "start", interrupted)
    requests = edgewright_requests(synthetic_texts(3, 0), 1, "news")
    config = BenchConfig((), duration_s=0.1, warm_up_s=0)
    with processes(connection_to(server), requests, config) as crew:
        assert crew.run(Closed(1)).tally.answered
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_the_package_is_not_loaded_before_a_command_needs_it() -> None:
    code = (
        "import sys; from edgewright.cli import run; run(['bench', '--help'])\n"
        "print([each for each in sys.modules if each in ('grpc', 'edgewright.bench', 'numpy')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
