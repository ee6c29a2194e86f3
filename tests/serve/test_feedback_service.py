"""FeedbackService of a running server: what is acknowledged, what is refused, and what goes on."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from sqlalchemy import text as sql

from edgewright.repository import Repository
from edgewright.rpc_errors import STATUS_METADATA_KEY
from edgewright.serve.call_observer import CallObserver
from edgewright.serve.feedback_checks import Checked
from edgewright.serve.feedback_records import Entry, Outcome
from edgewright.serve.feedback_service import MESSAGES_AHEAD, FeedbackService
from edgewright.serve.feedback_store import FeedbackStore
from edgewright.serve.instruments import Instruments
from edgewright.serve.ordered_stream import BYTES_AHEAD
from edgewright.v1.feedback_pb2 import (
    AckStatus,
    FeedbackEntry,
    SendFeedbackRequest,
    StreamFeedbackRequest,
)
from edgewright.v1.feedback_pb2_grpc import FeedbackServiceStub
from edgewright.v1.prediction_pb2 import ClassifyImageRequest

from .bundles import Recipe
from .conftest import Launch, Running
from .databases import Postgres, small_file_system
from .image_bundles import make_image_bundle, png


def new(prediction_id: str = "p", label: str = "sport", **fields: Any) -> FeedbackEntry:
    given = {"entry_id": uuid.uuid4().hex, "prediction_id": prediction_id, "label": label}
    return FeedbackEntry(**{**given, **fields})


def send(running: Running, *entries: FeedbackEntry, timeout: float = 30) -> list[Any]:
    stub = FeedbackServiceStub(running.channel)
    response = stub.SendFeedback(SendFeedbackRequest(entries=entries), timeout=timeout)
    return list(response.acknowledgements)


def stream(running: Running, *messages: Sequence[FeedbackEntry]) -> list[list[Any]]:
    stub = FeedbackServiceStub(running.channel)
    requests = [StreamFeedbackRequest(entries=entries) for entries in messages]
    responses = stub.StreamFeedback(iter(requests), timeout=60)
    return [list(response.acknowledgements) for response in responses]


def statuses(acknowledgements: Sequence[Any]) -> list[str]:
    return [AckStatus.Name(each.status).removeprefix("ACK_STATUS_") for each in acknowledgements]


def reason(error: grpc.RpcError) -> str:
    info = ErrorInfo()
    trailers = dict(error.trailing_metadata())
    Status.FromString(trailers[STATUS_METADATA_KEY]).details[0].Unpack(info)
    return info.reason


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    with FeedbackStore.open(url) as store:
        return store.transaction(lambda c: [tuple(row) for row in c.execute(sql(query))])


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'feedback.db'}"


def test_feedback_on_a_prediction_is_stored_beside_it(launch: Launch, store_url: str) -> None:
    running = launch(feedback=store_url, log_inputs="all")
    answer = running.classify("bank shares rises", "team wins").classifications
    ids = [each.prediction_id for each in answer]
    told = stream(running, [new(ids[0], note="sure"), new(ids[1])], [new("unknown")])
    assert [statuses(each) for each in told] == [["STORED", "STORED"], ["UNMATCHED"]]
    until(lambda: running.metric("edgewright_logged_predictions_total", outcome="written") == 2)
    joined = rows(
        store_url,
        "SELECT p.text, p.model, p.version, f.label, f.note FROM edgewright_predictions p "
        "JOIN edgewright_feedback f ON f.prediction_id = p.prediction_id ORDER BY p.text",
    )
    assert joined == [
        ("bank shares rises", "news", 1, "sport", "sure"), ("team wins", "news", 1, "sport", None),
    ]  # fmt: skip
    for status, count in (("stored", 2), ("unmatched", 1)):
        assert running.metric("edgewright_feedback_entries_total", status=status) == count


def test_every_score_is_logged_whatever_the_caller_asked_for(
    launch: Launch, sqlite_url: str
) -> None:
    running = launch(feedback=sqlite_url)
    (answer,) = running.classify("bank shares", top_k=1).classifications
    until(lambda: running.metric("edgewright_logged_predictions_total", outcome="written") == 1)
    query = "SELECT label, score, json_extract(scores, '$.sport'), text FROM edgewright_predictions"
    ((label, score, sport, text),) = rows(sqlite_url, query)
    assert (label, text) == (answer.label, None)
    assert score == pytest.approx(answer.score, abs=1e-5)
    assert 0 < sport < 1


def test_a_resend_is_a_duplicate_after_a_restart_too(launch: Launch, store_url: str) -> None:
    entries = [new() for _ in range(3)]
    first, second = launch(feedback=store_url), launch(feedback=store_url)
    assert statuses(send(first, *entries)) == ["UNMATCHED"] * 3
    assert statuses(send(first, *entries)) == ["DUPLICATE"] * 3
    assert statuses(send(second, *entries, new())) == ["DUPLICATE"] * 3 + ["UNMATCHED"]
    assert rows(store_url, "SELECT count(*) FROM edgewright_feedback") == [(4,)]


BAD = {
    "no id": ({"entry_id": ""}, "entry_id is empty"),
    "a blank id": ({"entry_id": "  "}, "entry_id is empty"),
    "a long id": ({"entry_id": "x" * 129}, "entry_id has 129 characters"),
    "a zero in the id": ({"entry_id": "a\0b"}, "entry_id holds the character"),
    "nothing to learn from": (
        {"prediction_id": ""},
        "prediction_id is empty; give it, or the text",
    ),
    "no label": ({"label": " "}, "label is empty"),
    "an unknown label": (
        {"label": "sprot"},
        "label 'sprot' is none of news; it knows: business, p",
    ),
    "an unknown model": ({"model": "olds"}, "no model 'olds' is served; there are: news"),
    "a note of 10 MB": ({"note": "x" * 10_000_000}, "note has 10000000 bytes and at most 4096"),
    "a long text": ({"text": "x" * 100_001}, "text has 100001 characters"),
    "a blank text": ({"text": " \n"}, "text is blank"),
    "a zero in the text": ({"text": "a\0b"}, "text holds the character U+0000"),
    "a time before all": ({"create_time_us": -1}, "create_time_us is -1"),
}


@pytest.fixture(scope="module")
def kept(loop: Any, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One server for all the bad entries."""
    from edgewright.serve.config import ServeConfig
    from edgewright.serve.server import Server

    url = f"sqlite:///{tmp_path_factory.mktemp('kept') / 'feedback.db'}"
    config = ServeConfig(repository, "127.0.0.1", port=0, metrics_port=0, feedback=url)

    async def build() -> Server:
        server = Server(config)
        await server.start()
        await server.load()
        return server

    server = loop.run(build())
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Running(server, channel, loop)
    loop.run(server.__aexit__(None, None, None))


@pytest.mark.parametrize("case", BAD)
def test_a_bad_entry_has_a_status_of_its_own_and_the_stream_lives(kept: Running, case: str) -> None:
    fields, message = BAD[case]
    told = stream(kept, [new(), new(**fields), new()], [new(**fields)], [new()])
    assert [statuses(each) for each in told] == [
        ["UNMATCHED", "INVALID", "UNMATCHED"], ["INVALID"], ["UNMATCHED"],
    ]  # fmt: skip
    for bad in (told[0][1], told[1][0]):
        assert message in bad.message


def test_a_clock_from_the_future_is_corrected(launch: Launch, sqlite_url: str) -> None:
    running = launch(feedback=sqlite_url)
    past_us, future_us = 10**15, 4 * 10**15
    told = send(
        running, new(create_time_us=past_us), new(create_time_us=future_us),
        new(create_time_us=2**63 - 1), new(),
    )  # fmt: skip
    assert statuses(told) == ["UNMATCHED"] * 4
    assert ["future" in each.message for each in told] == [False, True, True, False]
    query = "SELECT created_us, received_us FROM edgewright_feedback ORDER BY received_us"
    stored = rows(sqlite_url, query)
    assert stored[0][0] == past_us
    assert all(created == received for created, received in stored[1:])
    assert abs(stored[-1][1] / 1e6 - time.time()) < 60


def test_a_new_class_is_taken_where_it_is_meant(launch: Launch, sqlite_url: str) -> None:
    running = launch(feedback=sqlite_url)
    assert statuses(send(running, new(label="weather", new_label=True))) == ["UNMATCHED"]
    assert rows(sqlite_url, "SELECT label, model FROM edgewright_feedback") == [("weather", "news")]


def test_with_several_models_a_label_must_be_one_of_theirs(
    launch: Launch, sqlite_url: str, publish: Callable[..., Path]
) -> None:
    running = launch(publish(news=Recipe(), blog=Recipe(seed=1)), feedback=sqlite_url)
    told = send(running, new(), new(model="blog"), new(label="x"), new(model="blog", label="x"))
    assert statuses(told) == ["UNMATCHED", "UNMATCHED", "INVALID", "INVALID"]
    assert "is none of blog, news" in told[2].message
    assert "is none of blog;" in told[3].message
    models = rows(sqlite_url, "SELECT model FROM edgewright_feedback ORDER BY received_us")
    assert models == [(None,), ("blog",)]


@pytest.mark.parametrize("restarted", [False, True])
def test_feedback_on_a_model_that_is_unloaded_by_now_is_kept_where_its_prediction_is_logged(
    launch: Launch, store_url: str, publish: Callable[..., Path], restarted: bool
) -> None:
    where = publish(news=Recipe())
    Repository(where).publish(make_image_bundle(where.parent / "colours"), "colours")
    running = launch(where, feedback=store_url)
    request = ClassifyImageRequest(model="colours", images=[png((9, 200, 0))])
    (answer,) = running.predictions.ClassifyImage(request, timeout=30).classifications
    if restarted:  # it is in the store; else it may wait to be
        until(lambda: running.metric("edgewright_logged_predictions_total", outcome="written") == 1)
        running = launch(where, feedback=store_url)
    Repository(where).unload("colours")
    running.loop.run(running.server.follower.look())
    of_it = answer.prediction_id
    told = send(
        running,
        new(of_it, label="red"),
        new(of_it, label="blue", model="colours"),
        new(of_it, label="wine"),
        new(of_it, label="wine", new_label=True, model="colours"),
        new("unknown", label="red"),
        new("unknown", label="red", model="colours"),
        new(of_it),
    )
    assert statuses(told) == [*["STORED"] * 2, "INVALID", "STORED", *["INVALID"] * 2, "STORED"]
    kept = rows(store_url, "SELECT label, model FROM edgewright_feedback ORDER BY received_us")
    assert kept == [(each, "colours") for each in ("red", "blue", "wine")] + [("sport", "news")]


def test_without_a_store_feedback_is_refused_and_the_next_step_is_named(launch: Launch) -> None:
    running = launch()
    for call in (lambda: send(running, new()), lambda: stream(running, [new()])):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "start it with --feedback" in refused.value.details()


def test_feedback_waits_for_the_models_whose_labels_it_names(
    launch: Launch, sqlite_url: str
) -> None:
    running = launch(load=False, feedback=sqlite_url)
    with pytest.raises(grpc.RpcError) as refused:
        send(running, new())
    assert (refused.value.code(), reason(refused.value)) == (
        grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY",
    )  # fmt: skip
    running.load()
    assert statuses(send(running, new())) == ["UNMATCHED"]


def test_too_many_entries_in_a_message_are_refused(launch: Launch, sqlite_url: str) -> None:
    running = launch(feedback=sqlite_url)
    assert send(running) == []
    assert stream(running, [], [new()])[0] == []
    assert len(send(running, *[new() for _ in range(1000)])) == 1000
    for call in (send, lambda running, *entries: stream(running, entries)):
        with pytest.raises(grpc.RpcError) as refused:
            call(running, *[new() for _ in range(1001)])
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_that_is_none_is_refused(launch: Launch, sqlite_url: str) -> None:
    running = launch(feedback=sqlite_url)
    call = running.channel.stream_stream("/edgewright.v1.FeedbackService/StreamFeedback")
    with pytest.raises(grpc.RpcError) as refused:
        list(call(iter([b"\xff\xff"]), timeout=30))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_long_stream_is_answered_in_order(launch: Launch, sqlite_url: str) -> None:
    running = launch(feedback=sqlite_url)
    messages = [[new() for _ in range(16)] for _ in range(2 * MESSAGES_AHEAD)]
    told = stream(running, *messages)
    assert [[a.entry_id for a in each] for each in told] == [
        [entry.entry_id for entry in message] for message in messages
    ]
    assert rows(sqlite_url, "SELECT count(*) FROM edgewright_feedback") == [
        (16 * 2 * MESSAGES_AHEAD,)
    ]


def test_a_caller_who_leaves_a_stream_does_no_harm(launch: Launch, sqlite_url: str) -> None:
    running = launch(feedback=sqlite_url)
    requests = [StreamFeedbackRequest(entries=[new() for _ in range(100)]) for _ in range(200)]
    call = FeedbackServiceStub(running.channel).StreamFeedback(iter(requests))
    next(call)
    call.cancel()
    assert statuses(send(running, new())) == ["UNMATCHED"]
    until(lambda: running.server.intake.writer.waiting_bytes == 0)


def test_a_drain_acknowledges_what_was_read_and_ends_the_stream(
    launch: Launch, sqlite_url: str
) -> None:
    running = launch(feedback=sqlite_url, grace_s=1000.0)
    finished = threading.Event()

    def requests() -> Any:
        yield StreamFeedbackRequest(entries=[new()])
        finished.wait(60)  # the caller has no more to say, and does not hang up

    call = FeedbackServiceStub(running.channel).StreamFeedback(requests())
    assert statuses(next(call).acknowledgements) == ["UNMATCHED"]
    running.loop.run(running.server.drain())
    with pytest.raises(grpc.RpcError) as ended:
        next(call)
    finished.set()
    assert (ended.value.code(), reason(ended.value)) == (
        grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY",
    )  # fmt: skip


def test_predictions_go_on_while_postgresql_is_away(launch: Launch, postgres: Postgres) -> None:
    url = postgres.new_database()
    running = launch(feedback=url, log_inputs="all")
    entry = new()
    assert statuses(send(running, entry)) == ["UNMATCHED"]
    postgres.stop()
    try:
        for call in (lambda: send(running, new()), lambda: stream(running, [new()])):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert reason(refused.value) == "FEEDBACK_NOT_DURABLE"
            assert "geheim" not in refused.value.details()
        (answer,) = running.classify("team wins").classifications
    finally:
        postgres.start()
    assert statuses(send(running, entry, new())) == ["DUPLICATE", "UNMATCHED"]
    until(lambda: running.metric("edgewright_logged_predictions_total", outcome="written") == 1)
    logged = rows(url, "SELECT prediction_id, text FROM edgewright_predictions")
    assert logged == [(answer.prediction_id, "team wins")]


def test_a_full_disk_refuses_feedback_until_there_is_room(launch: Launch, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", "2m") as small:
        url = f"sqlite:///{small / 'feedback.db'}"
        running = launch(feedback=url)
        kept = new()
        assert statuses(send(running, kept)) == ["UNMATCHED"]
        ballast = small / "ballast"
        with suppress(OSError):
            ballast.write_bytes(b"\0" * (4 << 20))
        acknowledged = [kept]

        def fill() -> None:
            for _ in range(50):
                entries = [new(note="x" * 4000) for _ in range(20)]
                send(running, *entries)
                acknowledged.extend(entries)

        with pytest.raises(grpc.RpcError) as refused:
            fill()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason(refused.value) == "FEEDBACK_NOT_DURABLE"
        with pytest.raises(grpc.RpcError) as refused:
            stream(running, [new(note="x" * 4000) for _ in range(20)])
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert running.classify("team wins").classifications
        ballast.unlink()
        assert statuses(send(running, kept, new())) == ["DUPLICATE", "UNMATCHED"]
        stored = {row[0] for row in rows(url, "SELECT entry_id FROM edgewright_feedback")}
        assert {entry.entry_id for entry in acknowledged} <= stored
        running.loop.run(running.server.drain())


def test_what_a_stream_holds_in_memory_is_bounded(
    launch: Launch, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = launch(feedback=sqlite_url)
    assert running.server.intake is not None
    opened = threading.Event()
    plain, calls = FeedbackStore.add_feedback, []

    def held(store: FeedbackStore, entries: Any) -> Any:
        assert opened.wait(30)
        return plain(store, entries)

    service, store = running.server.feedback, running.server.feedback._store

    async def counted(entries: Any, *, wait_for_room: bool) -> Any:
        calls.append(len(entries))
        return await store(entries, wait_for_room=wait_for_room)

    monkeypatch.setattr(FeedbackStore, "add_feedback", held)
    monkeypatch.setattr(service, "_store", counted)
    large = [StreamFeedbackRequest(entries=[new(text="x" * 90_000)] * 20) for _ in range(20)]
    call = FeedbackServiceStub(running.channel).StreamFeedback(iter(large), timeout=60)
    until(lambda: len(calls) >= 3)
    time.sleep(0.3)
    assert sum(calls) * 90_000 < BYTES_AHEAD + 2 * 20 * 90_000
    opened.set()
    assert len(list(call)) == 20
    assert len(calls) == 20


def test_calls_come_between_the_messages_of_streams() -> None:
    """Whatever has come at once, the loop turns after each message: others wait for one at most."""
    order: list[str] = []

    class Checks:
        def check(self, message: FeedbackEntry, _logged: None) -> Checked:
            order.append(message.entry_id)
            return Checked(Entry(message.entry_id, None, "sport", None, None, None, 1, 1))

    class Writer:
        async def submit(self, entries: Sequence[Entry], *, wait_for_room: bool) -> list[Outcome]:
            return [Outcome.STORED for _ in entries]

    async def others() -> None:
        while True:
            order.append("others")
            await asyncio.sleep(0)

    async def scenario() -> None:
        instruments = Instruments()
        intake: Any = SimpleNamespace(checks=Checks(), writer=Writer())
        service = FeedbackService(intake, instruments, CallObserver(instruments))
        requests = [
            SendFeedbackRequest(entries=[FeedbackEntry(entry_id=f"{n}{part}") for part in "ab"])
            for n in range(9)
        ]
        turning = asyncio.create_task(others())
        await asyncio.gather(*(service.SendFeedback(each, None) for each in requests))
        turning.cancel()

    asyncio.run(scenario())
    checked = "".join("|" if each == "others" else each[0] for each in order)
    runs = [run for run in checked.split("|") if run]
    assert runs == [f"{n}{n}" for n in range(9)]
