"""StreamClassify of a running server, on the wire and through both clients."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from edgewright.client import AsyncClient, Client
from edgewright.errors import InputError, ModelNotFoundError
from edgewright.repository import Repository
from edgewright.serve.classify_stream import MESSAGES_AHEAD
from edgewright.v1 import prediction_pb2 as pb

from .bundles import POISON, Recipe, random_texts
from .conftest import Gate, Launch, LoopThread, Running, until
from .image_bundles import make_image_bundle, png

Code = grpc.StatusCode


def message(*texts: str | bytes, **more: Any) -> pb.StreamClassifyRequest:
    items = [
        pb.StreamItem(item_id=f"i{place}", **{"text" if isinstance(each, str) else "image": each})
        for place, each in enumerate(texts)
    ]
    return pb.StreamClassifyRequest(items=items, **more)


def stream(running: Running, *messages: Any, timeout: float = 60) -> list[Any]:
    return list(running.predictions.StreamClassify(iter(messages), timeout=timeout))


def statuses(response: Any) -> list[str]:
    return [pb.ItemStatus.Name(each.status).rpartition("_")[2] for each in response.answers]


def test_items_are_answered_in_order_as_by_the_unary_method(launch: Launch) -> None:
    running = launch()
    texts = random_texts(60)
    typed = running.classify(*texts, top_k=1).classifications
    parts = [message(*texts[start : start + 7], top_k=1) for start in range(0, 60, 7)]
    responses = stream(running, *parts, message())
    answers = [each for response in responses for each in response.answers]
    assert [len(each.answers) for each in responses] == [7] * 8 + [4, 0]
    assert [each.item_id for each in answers[:7]] == [f"i{place}" for place in range(7)]
    assert [a.classification.label for a in answers] == [each.label for each in typed]
    assert {len(each.classification.scores) for each in answers} == {1}


def test_a_bad_item_has_a_status_of_its_own_and_the_stream_lives(launch: Launch) -> None:
    running = launch()
    first, second = stream(
        running,
        message("bank", " ", "goal", b"x", POISON, "x" * 100_001),
        message("team"),
    )
    assert statuses(first) == ["ANSWERED", "INVALID", "ANSWERED", "INVALID", "FAILED", "INVALID"]
    assert statuses(second) == ["ANSWERED"]
    told = [each.message for each in first.answers]
    assert told[1] == "the text is empty; leave it out of the call"
    assert told[3] == "the item holds image; news reads texts"
    assert told[4].startswith("internal error; the server's log has the details; request id ")
    assert "the text has 100001 characters" in told[5]
    assert statuses(stream(running, message("bank", top_k=9))[0]) == ["INVALID"]


def test_messages_and_items_are_counted_and_timed(launch: Launch) -> None:
    running = launch(max_batch=1, instances=1)  # what is computed one by one adds up to less
    of = {"model": "news", "version": "1"}
    method = "edgewright.v1.PredictionService/StreamClassify"
    stream(running, message("bank", " ", POISON), message("team", "goal"))
    until(lambda: running.server.in_flight == 0)
    seconds = "edgewright_stream_message_seconds"
    assert running.metric(f"{seconds}_count", method=method, **of) == 2
    assert running.metric(f"{seconds}_sum", **of) > running.metric("edgewright_compute_seconds_sum")
    for status, count in (("answered", 3), ("invalid", 1), ("failed", 1)):
        assert running.metric("edgewright_stream_items_total", status=status, **of) == count
    for stage in ("queue", "preprocess", "compute", "postprocess"):
        assert running.metric(f"edgewright_{stage}_seconds_count", **of) >= 3
    assert running.metric("edgewright_requests_total", method=method, **of) == 1
    assert running.metric("edgewright_request_seconds_count", method=method) == 0


def test_images_are_streamed_too(launch: Launch, tmp_path: Path) -> None:
    Repository(tmp_path / "r").publish(make_image_bundle(tmp_path / "b"), "colours")
    running = launch(tmp_path / "r")
    (answer,) = stream(running, message(png((9, 200, 0)), b"no image", "text", b"", png((0, 0, 9))))
    assert statuses(answer) == ["ANSWERED", "INVALID", "INVALID", "INVALID", "ANSWERED"]
    assert answer.answers[4].classification.label == "blue"
    assert answer.answers[1].message.startswith("the image is no image that is read here")


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (message("a", model="wine"), Code.NOT_FOUND),
        (message("a", version=7), Code.NOT_FOUND),
        (message(*["a"] * 257), Code.INVALID_ARGUMENT),
    ],
)
def test_what_concerns_the_whole_stream_ends_it(launch: Launch, asked: Any, code: Any) -> None:
    running = launch()
    with pytest.raises(grpc.RpcError) as failure:
        stream(running, message("bank"), asked)
    assert failure.value.code() is code


def test_a_full_queue_slows_a_stream_down_and_does_not_end_it(launch: Launch) -> None:
    running = launch(queue_size=8, max_texts=8)
    responses = stream(running, *[message(*["bank"] * 8) for _ in range(20)])
    assert [statuses(each) for each in responses] == [["ANSWERED"] * 8] * 20
    assert running.server.batcher.queue.rows == 0


def test_a_client_that_never_reads_is_not_read_ahead_of(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    running = launch(max_batch=1)
    held = gate()
    call = running.predictions.StreamClassify(iter([message("bank")] * 50), timeout=60)
    until(held.entered.is_set)
    until(lambda: running.server.batcher.queue.rows == MESSAGES_AHEAD)
    assert running.metric("edgewright_queue_rows") == MESSAGES_AHEAD
    held.open.set()
    assert len(list(call)) == 50


def test_a_client_that_vanishes_and_one_that_is_late_leave_nothing_behind(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    running = launch()
    held = gate()
    call = running.predictions.StreamClassify(iter([message("bank")] * 9), timeout=60)
    until(held.entered.is_set)
    call.cancel()
    with pytest.raises(grpc.RpcError) as late:
        stream(running, message("goal"), timeout=0.2)
    assert late.value.code() is Code.DEADLINE_EXCEEDED
    until(lambda: running.server.in_flight == 0)
    held.open.set()
    until(lambda: running.server.batcher.queue.rows == 0)
    assert running.classify("still alive").classifications


def test_a_drain_answers_what_was_read_and_ends_the_stream(
    launch: Launch, loop: LoopThread
) -> None:
    running = launch(grace_s=1000.0)
    finished = threading.Event()

    def requests() -> Iterator[Any]:
        yield message("bank")
        finished.wait(60)  # the caller has no more to say, and does not hang up

    call = running.predictions.StreamClassify(requests())
    assert statuses(next(call)) == ["ANSWERED"]
    loop.run(running.server.drain())
    with pytest.raises(grpc.RpcError) as ended:
        next(call)
    finished.set()
    assert ended.value.code() is Code.UNAVAILABLE


def test_both_clients_stream_and_tell_what_is_wrong_with_an_item(launch: Launch) -> None:
    where = f"127.0.0.1:{launch().server.port}"
    texts = random_texts(150, seed=3)
    with Client(where) as client:
        typed = [each.label for each in client.classify(texts)]
        told = list(client.stream_classify(texts, model="news", top_k=1))
        assert [each.result().label for each in told] == typed
        assert [each.index for each in told] == list(range(150))
        assert list(client.stream_classify([])) == []
        mixed = list(client.stream_classify(["bank", "", b"png"]))
        assert [each.error is None for each in mixed] == [True, False, False]
        with pytest.raises(InputError, match="item 1: the text is empty"):
            mixed[1].result()
        for bad, why in ((3, "item 0 is a int"), ("\ud800", "item 0 is not valid Unicode")):
            with pytest.raises(InputError, match=why):
                list(client.stream_classify([bad]))  # type: ignore[list-item]
        with pytest.raises(ModelNotFoundError):
            list(client.stream_classify(["a"], model="wine"))
        with pytest.raises(InputError, match="top_k=-1"):
            client.stream_classify(["a"], top_k=-1)

    async def later() -> AsyncIterator[str]:
        for text in texts:
            await asyncio.sleep(0)
            yield text

    async def run() -> None:
        async with AsyncClient(where) as client:
            told = [each async for each in client.stream_classify(later())]
            assert [each.result().label for each in told] == typed
            assert [e.index async for e in client.stream_classify(texts[:70])] == list(range(70))

    asyncio.run(run())


def test_an_idle_stream_keeps_no_model_that_has_left(
    launch: Launch, publish: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "edgewright.access")
    where = publish(news=Recipe())
    running = launch(where, access_log="all")
    model = weakref.ref(running.server.registry.ready("news"))
    messages: SimpleQueue[Any] = SimpleQueue()
    answers = running.predictions.StreamClassify(iter(messages.get, None), timeout=60)
    messages.put(message("bank"))
    assert statuses(next(answers)) == ["ANSWERED"]
    Repository(where).publish(where / "news" / "1", "news")
    running.loop.run(running.server.follower.look())

    def gone() -> bool:
        gc.collect()
        return model() is None

    try:
        until(gone)
    finally:
        messages.put(None)
    until(lambda: running.server.in_flight == 0)
    (line,) = [each for each in caplog.records if each.name == "edgewright.access"]
    told = line.fields  # type: ignore[attr-defined]
    assert (told["code"], told["model"], told["version"]) == ("OK", "news", 1)
