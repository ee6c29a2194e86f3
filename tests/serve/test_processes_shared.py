"""What servers of several processes share: the repository, the store of feedback, and who counts."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
from sqlalchemy import create_engine, text

from edgewright.repository import Repository
from edgewright.v1 import admin_pb2
from edgewright.v1.admin_pb2_grpc import AdminServiceStub
from edgewright.v1.feedback_pb2 import FeedbackEntry, SendFeedbackRequest
from edgewright.v1.feedback_pb2_grpc import FeedbackServiceStub

from .databases import Postgres
from .families import TRIES, WAIT_S, Family, Start
from .processes import until


def test_commands_of_the_admin_port_reach_every_process(
    start_two: Start, bundle: Path, tmp_path: Path
) -> None:
    repository = Repository(tmp_path / "repository")
    for _ in range(2):
        repository.publish(bundle, "news", keep_current=True)
    options = ("--admin-port", "0", "--watch-seconds", "0.1")
    family = start_two(repository.path, *options).announced()
    with grpc.insecure_channel(f"127.0.0.1:{family.told['admin_port']}") as channel:
        admin = AdminServiceStub(channel)
        assert answering(family) == [1, 1]
        admin.LoadVersion(admin_pb2.LoadVersionRequest(model="news", version=2), timeout=WAIT_S)
        until(lambda: answering(family) == [2, 2])
        admin.RollbackModel(admin_pb2.RollbackModelRequest(model="news"), timeout=WAIT_S)
        until(lambda: answering(family) == [1, 1])
        traffic = admin_pb2.SetTrafficRequest(model="news", canary_version=2, canary_weight=1.0)
        admin.SetTraffic(traffic, timeout=WAIT_S)
        until(lambda: answering(family) == [2, 2])
        admin.UnloadModel(admin_pb2.UnloadModelRequest(model="news"), timeout=WAIT_S)
        until(lambda: answering(family) == [404, 404])
    family.popen.terminate()
    assert family.wait()[0] == 0


def answering(family: Family) -> list[int]:
    """The version that answers a call, by process; where none does, the status."""
    found = []
    for port in family.http_ports:
        url = f"http://127.0.0.1:{port}/v1/models/news:classify"
        try:
            with urlopen(url, data=b'{"texts": ["bank"]}', timeout=WAIT_S) as answer:
                found.append(int(json.load(answer)["version"]))
        except HTTPError as error:
            with error:
                found.append(error.code)
    return found


def test_two_processes_keep_all_feedback_in_one_postgresql(
    start_two: Start, repository: Path, postgres: Postgres
) -> None:
    url = postgres.new_database()
    family = start_two(repository, "--feedback", url, "--log-inputs", "all").announced()
    sent, nodes = {}, set()
    for _ in range(TRIES):
        prediction = family.classify()
        entry = FeedbackEntry(entry_id=f"{len(sent)}", prediction_id=prediction, label="sport")
        with family.channel() as channel:
            stub = FeedbackServiceStub(channel)
            stub.SendFeedback(SendFeedbackRequest(entries=[entry]), timeout=WAIT_S)
        sent[entry.entry_id] = prediction
        nodes.add(prediction.rpartition("-")[2])
        if len(nodes) == 2 and len(sent) >= 8:
            break
    assert len(nodes) == 2
    family.popen.terminate()
    assert family.wait() == (0, "", "")
    rows, logged = (
        read(url, f"SELECT {columns} FROM edgewright_{table}")
        for columns, table in (
            ("entry_id, prediction_id", "feedback"),
            ("prediction_id", "predictions"),
        )
    )
    assert dict(rows) == sent
    assert {row[0] for row in logged} == set(sent.values())


def read(url: str, query: str) -> list[tuple[str, ...]]:
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(query)).all()]
    engine.dispose()
    return found


def test_pages_of_metrics_are_of_one_process_and_together_of_all(
    start_two: Start, repository: Path
) -> None:
    family = start_two(repository).announced()
    answered: dict[str, int] = {}
    while len(answered) < 2 or sum(answered.values()) < 10:
        node = family.classify().rpartition("-")[2]
        answered[node] = answered.get(node, 0) + 1
    sample = 'edgewright_requests_total{code="OK"'
    until(
        lambda: (
            sorted(int(family.count(number, sample)) for number in range(2))
            == sorted(answered.values())
        )
    )
    assert [family.count(number, "edgewright_ready ") for number in range(2)] == [1, 1]


def test_a_connection_that_comes_of_age_is_followed_by_another(
    start_two: Start, repository: Path
) -> None:
    """Which the kernel gives another process, now and then."""
    family = start_two(repository, "--max-connection-age", "0.1").announced()
    nodes: set[str] = set()

    def both_answered(channel: grpc.Channel) -> bool:
        nodes.add(family.classify(channel).rpartition("-")[2])
        return len(nodes) == 2

    with family.channel() as channel:
        until(lambda: both_answered(channel))
