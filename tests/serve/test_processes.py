"""``edgewright serve --processes``: one port, several processes, and what becomes of them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import create_engine, text

from edgewright.errors import ConfigError, IntegrityError
from edgewright.repository import Repository
from edgewright.serve import processes
from edgewright.serve.config import ServeConfig
from edgewright.serve.ports import reserved
from edgewright.v1.feedback_pb2 import FeedbackEntry, SendFeedbackRequest
from edgewright.v1.feedback_pb2_grpc import FeedbackServiceStub
from edgewright.v1.prediction_pb2 import ClassifyTextRequest
from edgewright.v1.prediction_pb2_grpc import PredictionServiceStub

from .bundles import make_bundle
from .families import TRIES, WAIT_S, Start, is_running
from .processes import until

CALLERS = 40  # at once, until both processes have met one; all at the same: 2 ** -39


def test_two_processes_answer_on_one_port_and_keep_all_feedback(
    start_two: Start, repository: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    family = start_two(repository, "--feedback", url, "--log-inputs", "all").announced()
    predictions, nodes = [], set()
    for _ in range(TRIES):
        with family.channel() as channel:
            request = ClassifyTextRequest(texts=["bank shares"])
            answer = PredictionServiceStub(channel).ClassifyText(request, timeout=WAIT_S)
            predictions.append(answer.classifications[0].prediction_id)
            entry = FeedbackEntry(
                entry_id=f"entry-{len(predictions)}", prediction_id=predictions[-1], label="sport"
            )
            stub = FeedbackServiceStub(channel)
            stub.SendFeedback(SendFeedbackRequest(entries=[entry]), timeout=WAIT_S)
        nodes.add(predictions[-1].rpartition("-")[2])
        if len(nodes) == 2:
            break
    assert len(nodes) == 2
    assert len(set(predictions)) == len(predictions)
    assert len(set(family.pids)) == len(set(family.http_ports)) == 2
    for number in range(2):
        assert family.page(number, "/readyz")[0] == 200
        assert 'edgewright_requests_total{code="OK"' in family.page(number, "/metrics")[1]
    family.popen.terminate()
    code, out, err = family.wait()
    assert (code, out, err) == (0, "", "")
    assert feedback_in(url) == {(f"entry-{n}", each) for n, each in enumerate(predictions, start=1)}


def feedback_in(url: str) -> set[tuple[str, str]]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT entry_id, prediction_id FROM edgewright_feedback")
        ).all()
    engine.dispose()
    return {(row[0], row[1]) for row in found}


def test_a_killed_process_comes_back_while_the_other_answers(
    start_two: Start, repository: Path
) -> None:
    family = start_two(repository).announced()
    before = family.nodes()
    assert len(before) == 2
    os.kill(family.pids[1], signal.SIGKILL)
    family.logs(
        f"(pid {family.pids[1]}, HTTP port {family.http_ports[1]}) ended with exit code 137"
    )
    until(lambda: bool(family.classify()) and family.page(1, "/readyz")[0] == 200)
    after = family.nodes()
    assert len(after - before) == len(after & before) == 1
    family.popen.terminate()
    assert family.wait()[0] == 0


def test_sigterm_finishes_what_is_in_flight_in_every_process(
    start_two: Start, repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    options = ("--max-wait", "1000")
    family = start_two(repository, *options, gate=gate).announced()
    gate.touch()
    with ThreadPoolExecutor(CALLERS) as pool:
        calls = []
        while len(calls) < CALLERS and 0 in family.in_flight():
            calls.append(pool.submit(family.classify))
            until(lambda: sum(family.in_flight()) == len(calls))
        assert 0 not in family.in_flight()
        family.popen.terminate()
        until(lambda: all(family.page(number, "/readyz")[0] == 503 for number in range(2)))
        assert not any(call.done() for call in calls)
        gate.unlink()
        assert all(call.result() for call in calls)
    assert family.wait()[0] == 0


def test_a_second_signal_ends_all_at_once(
    start_two: Start, repository: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    family = start_two(repository, "--grace", "1000", gate=gate).announced()
    gate.touch()
    with ThreadPoolExecutor() as pool:
        call = pool.submit(family.classify)
        until(lambda: sum(family.in_flight()) == 1)
        family.popen.send_signal(signal.SIGINT)
        until(lambda: family.page(0, "/readyz")[0] != 200)
        family.popen.send_signal(signal.SIGINT)
        assert family.wait()[0] == 128 + signal.SIGINT
        assert isinstance(call.exception(), grpc.RpcError)
    until(lambda: not any(is_running(pid) for pid in family.pids))


def test_processes_whose_parent_was_killed_end_too(start_two: Start, repository: Path) -> None:
    family = start_two(repository).announced()
    assert all(is_running(pid) for pid in family.pids)
    family.popen.kill()
    until(lambda: not any(is_running(pid) for pid in family.pids))
    assert family.wait()[0] == -signal.SIGKILL


def test_a_corrupt_bundle_stops_it_with_4_and_is_named_once(
    start_two: Start, tmp_path: Path
) -> None:
    Repository(tmp_path / "repository").publish(make_bundle(tmp_path / "bundle"), "news")
    file = tmp_path / "repository" / "news" / "1" / "variants" / "fp32.onnx"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(bytes(content))
    code, out, err = start_two(tmp_path / "repository").wait()
    assert (code, out) == (4, "")
    assert err.count(f"error: {file} was altered") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_in_use_is_an_error_of_its_option(
    start_two: Start, repository: Path, option: str
) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # it would share
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, out, err = start_two(repository, option, port).wait()
    assert (code, out) == (2, "")
    assert f"error: {option} {port} on 127.0.0.1 cannot be had" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("step", ["load", "answer"])
def test_where_one_process_fails_nobody_waits_for_the_others_any_more(step: str) -> None:
    left: list[int] = []

    class FakeMember:
        """Waits for ever at ``step``, but for the first, and the second, which fails."""

        def __init__(self, number: int) -> None:
            self.number = number

        async def load(self) -> None:
            await self.at("load")

        async def answer(self) -> None:
            await self.at("answer")

        async def at(self, this: str) -> None:
            if this != step or not self.number:
                return
            if self.number == 1:
                await asyncio.sleep(0)  # until the others wait
                raise IntegrityError("altered")
            try:
                await asyncio.Event().wait()
            finally:
                left.append(self.number)

    async def scenario() -> list[int]:
        members: list[Any] = [FakeMember(number) for number in range(4)]
        with pytest.raises(IntegrityError, match="altered"):
            await processes._start_all(members)
        return list(left)

    assert asyncio.run(scenario()) == [2, 3]


def test_a_reserved_port_is_nobody_elses() -> None:
    with (
        reserved("127.0.0.1", 0, "--port") as port,
        pytest.raises(ConfigError, match=f"--port {port} on 127.0.0.1 cannot be had"),
    ):
        reserved("127.0.0.1", port, "--port").__enter__()


def test_faults_of_several_processes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as none:
        ServeConfig(tmp_path, processes=0)
    assert none.value.faults == ("--processes is 0; it must be 1 to 256",)
    with pytest.raises(ConfigError) as told:
        ServeConfig(
            tmp_path, processes=4, port=65534, metrics_port=65533, admin_port=0, watch_seconds=0
        )
    highest, meets, blind = told.value.faults
    assert "up to 65536, and the highest is 65535" in highest
    assert "--port is 65534" in meets
    assert "--watch-seconds above 0" in blind
    ServeConfig(tmp_path, processes=4, port=9000, metrics_port=0, admin_port=9001)
