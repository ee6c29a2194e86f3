"""The thread that writes: together, acknowledged after the commit, alive whatever happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from edgewright.errors import FeedbackStoreError, NotReadyError, OverloadedError
from edgewright.serve.feedback_records import Entry, Outcome, Prediction
from edgewright.serve.feedback_writer import GATHER_S, PREDICTIONS_S, FeedbackWriter
from edgewright.serve.prediction_log import LogInputs, PredictionLog

from .test_prediction_log import add


class FakeStore:
    """Remembers its transactions; ``fault`` is raised while it is set, ``open`` holds them up."""

    def __init__(self) -> None:
        self.commits: list[list[str]] = []
        self.logged: list[str] = []
        self.transactions: list[int] = []  # predictions in each
        self.fault: BaseException | None = None
        self.log_fault: BaseException | None = None  # of predictions alone
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.closed = False

    def add_feedback(self, entries: Sequence[Entry]) -> list[Outcome]:
        self.entered.set()
        assert self.open.wait(30)
        self._fail()
        self.commits.append([entry.entry_id for entry in entries])
        known = {None, *self.logged}
        return [
            Outcome.STORED if each.prediction_id in known else Outcome.UNMATCHED for each in entries
        ]

    def add_predictions(self, logged: Sequence[Prediction]) -> None:
        self._fail()
        if self.log_fault is not None:
            raise self.log_fault
        self.transactions.append(len(logged))
        self.logged += [each.prediction_id for each in logged]

    def close(self) -> None:
        self.closed = True

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault


class Clock:
    """Stands still."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Counts:
    """What an observer was told."""

    def __init__(self) -> None:
        self.committed = self.failed = self.logged = 0

    def feedback_committed(self, entries: int, seconds: float) -> None:
        assert seconds >= 0
        self.committed += entries

    def feedback_failed(self, entries: int) -> None:
        self.failed += entries

    def predictions_logged(self, count: int) -> None:
        self.logged += count


class Bench:
    """A writer on a store of its own, on a running loop."""

    def __init__(self, inputs: LogInputs, **options: Any) -> None:
        self.store = FakeStore()
        self.counts = Counts()
        self.log = PredictionLog(inputs, lambda rows, images: None)
        self.writer = FeedbackWriter(self.store, self.log, self.counts, **options)

    def submit(self, *ids: str, wait: bool = True, **fields: Any) -> asyncio.Task[list[Outcome]]:
        work = self.writer.submit([entry(each, **fields) for each in ids], wait_for_room=wait)
        return asyncio.ensure_future(work)


def entry(entry_id: str, prediction_id: str | None = None, text: str | None = None) -> Entry:
    return Entry(entry_id, prediction_id, "sport", text, None, None, 1, 2)


def bench(
    test: Callable[[Bench], Coroutine[Any, Any, None]],
    inputs: LogInputs = LogInputs.OFF,
    **options: Any,
) -> None:
    async def run() -> None:
        made = Bench(inputs, **options)
        try:
            await asyncio.wait_for(test(made), 60)
        finally:
            made.store.open.set()
            await made.writer.close()
        assert made.store.closed

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited in vain")


def test_what_comes_together_is_one_transaction() -> None:
    async def test(b: Bench) -> None:
        b.store.open.clear()
        first = b.submit("a")
        await until(b.store.entered.is_set)
        others = [b.submit(f"{index}") for index in range(20)]
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in (first, *others))  # nothing is committed yet
        b.store.open.set()
        assert await asyncio.gather(first, *others) == [[Outcome.STORED]] * 21
        assert b.store.commits == [["a"], [f"{index}" for index in range(20)]]
        assert b.counts.committed == 21

    bench(test)


def test_a_refusing_store_is_told_to_everyone_and_tried_anew() -> None:
    async def test(b: Bench) -> None:
        b.store.fault = FeedbackStoreError("disk full")
        for failed in await asyncio.gather(b.submit("a"), b.submit("b"), return_exceptions=True):
            assert failed is b.store.fault
        b.store.fault = None
        assert await b.submit("a") == [Outcome.STORED]
        assert (b.counts.failed, b.counts.committed, b.writer.waiting_bytes) == (2, 1, 0)

    bench(test)


def test_the_thread_outlives_what_nobody_foresaw(caplog: pytest.LogCaptureFixture) -> None:
    async def test(b: Bench) -> None:
        b.store.fault = ZeroDivisionError("secret")
        with pytest.raises(FeedbackStoreError, match="the server's log says how"):
            await b.submit("a")
        b.store.fault = None
        assert await b.submit("a") == [Outcome.STORED]

    bench(test)
    assert "ZeroDivisionError" in caplog.text
    assert "the store writes again, after a time in which feedback was refused" in caplog.text


def test_a_full_queue_refuses_a_call_and_holds_up_a_stream() -> None:
    async def test(b: Bench) -> None:
        b.store.open.clear()
        first = b.submit("a", text="x" * 900)
        await until(b.store.entered.is_set)
        with pytest.raises(OverloadedError) as refused:
            await b.submit("b", wait=False, text="x" * 900)
        assert refused.value.retry_after_s > 0
        patient = b.submit("c", text="x" * 900)
        await asyncio.sleep(0.05)
        assert not patient.done()
        b.store.open.set()
        assert await asyncio.gather(first, patient) == [[Outcome.STORED]] * 2
        # Alone, even an entry that is larger than the queue gets in.
        assert await b.submit("d", wait=False, text="x" * 9000) == [Outcome.STORED]

    bench(test, queue_bytes=2000)


def test_a_caller_who_leaves_takes_nobody_along() -> None:
    clock = Clock()

    async def test(b: Bench) -> None:
        b.store.open.clear()
        leaves, stays = b.submit("a"), b.submit("b")
        await asyncio.sleep(0)
        clock.now = GATHER_S  # not before both are there
        await until(b.store.entered.is_set)
        leaves.cancel()
        b.store.open.set()
        assert await stays == [Outcome.STORED]
        await until(lambda: b.writer.waiting_bytes == 0)
        assert b.store.commits == [["a", "b"]]

    bench(test, clock=clock)


def test_closing_writes_what_waits_and_refuses_what_comes() -> None:
    async def test(b: Bench) -> None:
        add(b.log, *["x"] * 1500)
        waiting = b.submit("a")
        await asyncio.sleep(0)
        await b.writer.close()
        assert await waiting == [Outcome.STORED]
        assert (len(b.store.logged), len(b.log), b.store.closed) == (1500, 0, True)
        with pytest.raises(NotReadyError):
            await b.submit("b")

    bench(test)


def test_predictions_are_written_by_themselves() -> None:
    async def test(b: Bench) -> None:
        ids = add(b.log, *["x"] * 1500)
        await until(lambda: not len(b.log))
        assert b.store.logged == ids
        assert b.counts.logged == 1500

    bench(test)


def test_images_are_written_some_at_a_time_and_without_a_pause() -> None:
    clock = Clock()

    async def test(b: Bench) -> None:
        ids = add(b.log, *[b"x" * (1 << 20)] * 14)
        clock.now = PREDICTIONS_S  # and stays there: a second pause would have no end
        await until(lambda: not len(b.log))
        assert b.store.logged == ids
        assert b.store.transactions == [3, 3, 3, 3, 2]

    bench(test, LogInputs.ALL, clock=clock)


def test_predictions_wait_while_the_store_fails() -> None:
    async def test(b: Bench) -> None:
        b.store.fault = FeedbackStoreError("away")
        add(b.log, "x")
        with pytest.raises(FeedbackStoreError):
            await b.submit("a")
        await asyncio.sleep(0.3)
        assert len(b.log) == 1
        b.store.fault = None
        await until(lambda: b.store.logged == ["id-0"])

    bench(test)


def test_predictions_that_do_not_fit_are_not_told_as_feedback_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(b: Bench) -> None:
        b.store.log_fault = FeedbackStoreError("disk nearly full")
        add(b.log, "x")
        await until(lambda: "predictions were not logged" in caplog.text)
        assert await b.submit("a") == [Outcome.STORED]

    bench(test)
    assert "feedback was refused" not in caplog.text
    assert "writes again" not in caplog.text


def test_closing_does_not_wait_for_a_store_that_fails_and_tells_what_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(b: Bench) -> None:
        b.store.fault = FeedbackStoreError("away")
        add(b.log, *["x"] * 1500)
        await b.writer.close()
        assert b.store.logged == []

    bench(test)
    assert "1500 predictions that waited for the store are lost" in caplog.text


def test_a_prediction_that_is_about_to_be_logged_is_not_unknown() -> None:
    async def test(b: Bench) -> None:
        b.store.open.clear()
        first = b.submit("a")
        await until(b.store.entered.is_set)  # the thread is busy, so the log waits
        (waiting,) = add(b.log, "x")
        known, unknown = b.submit("b", prediction_id=waiting), b.submit("c", prediction_id="?")
        b.store.open.set()
        told = await asyncio.gather(first, known, unknown)
        assert told == [[Outcome.STORED], [Outcome.STORED], [Outcome.UNMATCHED]]

    bench(test)
