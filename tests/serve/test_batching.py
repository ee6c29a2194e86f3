from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgewright.errors import (
    DeadlineError,
    EdgewrightError,
    IntegrityError,
    NotReadyError,
    OverloadedError,
)
from edgewright.preprocess import TokenRow
from edgewright.serve.admission import QueueLimit
from edgewright.serve.batching import Batcher
from edgewright.serve.call import Call
from edgewright.serve.compute import best_first
from edgewright.serve.line import BatchLimit

from .compute_fakes import BATCH, QUEUE, FakeModel, Observer, expected_answer
from .conftest import Launch


def with_batcher(
    scenario: Callable[[Batcher], Coroutine[Any, Any, None]],
    *,
    batch: BatchLimit = BATCH,
    limit: QueueLimit = QUEUE,
    observer: Observer | None = None,
    threads: int = 1,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    async def run() -> None:
        batcher = Batcher(batch=batch, limit=limit, observer=observer or Observer(), clock=clock)
        batcher.grow_to(threads)
        try:
            await asyncio.wait_for(scenario(batcher), 30)
        finally:
            await batcher.close()
            assert not batcher.alive
            assert batcher.queue.rows == 0

    asyncio.run(run())


async def entered(model: FakeModel) -> None:
    assert await asyncio.to_thread(model.entered.wait, 20)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # with_batcher ends what waits in vain
        await asyncio.sleep(0.001)


@settings(max_examples=40, deadline=None)
@given(
    calls=st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=20), min_size=1, max_size=12),
    max_rows=st.integers(1, 9),
    max_tokens=st.integers(1, 50),
    row_by_row=st.booleans(),
    threads=st.integers(1, 3),
)
def test_every_caller_gets_its_own_answers_in_order(
    calls: list[list[int]], max_rows: int, max_tokens: int, row_by_row: bool, threads: int
) -> None:
    models = [
        FakeModel("a", row_by_row=row_by_row, instances=threads),
        FakeModel("b", row_by_row=row_by_row),
    ]

    async def scenario(batcher: Batcher) -> None:
        answers = await asyncio.gather(
            *(
                batcher.classify(models[index % 2], [str(number) for number in call], None)
                for index, call in enumerate(calls)
            )
        )
        assert answers == [[expected_answer(number) for number in call] for call in calls]

    with_batcher(scenario, batch=BatchLimit(max_rows, max_tokens), threads=threads)
    assert sorted(models[0].computed + models[1].computed) == sorted(chain(*calls))
    longest = 1 if row_by_row else max_rows
    assert all(len(run) <= longest for model in models for run in model.runs)


def test_an_idle_thread_takes_what_another_has_encoded_and_not_begun() -> None:
    """Before what came later, which would otherwise overtake it."""
    short, long = 700, 6  # one token and seven
    model, blocker = FakeModel(instances=2), FakeModel("blocker")

    async def scenario(batcher: Batcher) -> None:
        blocker.gate.clear()
        model.gate.clear()
        tasks = [asyncio.create_task(batcher.classify(blocker, ["0"], None))]
        await entered(blocker)
        inputs = [str(number) for number in (short, short, long, long, long)]
        tasks.append(asyncio.create_task(batcher.classify(model, inputs, None)))
        await entered(model)  # its thread has taken half of the tokens
        blocker.gate.set()
        await until(lambda: len(model.runs) == 2)
        assert model.runs == [[short, short], [long]]
        model.gate.set()
        _, answers = await asyncio.gather(*tasks)
        assert answers == [expected_answer(int(each)) for each in inputs]

    with_batcher(scenario, threads=2)


def test_a_thread_that_has_nothing_to_do_is_woken_for_what_another_hands_over() -> None:
    short, other, long = 700, 1, 6  # one token, two and seven
    encode = threading.Event()

    class Slow(FakeModel):
        def encode(self, texts: Sequence[str]) -> list[TokenRow]:
            assert str(short) not in texts or encode.wait(60)
            return super().encode(texts)

    model = Slow(instances=2)

    async def scenario(batcher: Batcher) -> None:
        inputs = [str(number) for number in (short, short, long, long, other)]
        task = asyncio.create_task(batcher.classify(model, inputs, None))
        await until(lambda: model.runs == [[other, long]])  # the second thread's half
        model.gate.clear()
        encode.set()
        await until(lambda: len(model.runs) == 3)  # the first thread is held in one of them
        model.gate.set()
        assert await task == [expected_answer(int(each)) for each in inputs]

    with_batcher(scenario, threads=2)


@settings(max_examples=30, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.lists(st.integers(0, 500), min_size=1, max_size=20),
            st.sampled_from(["wanted", "wanted", "cancelled", "expired"]),
        ),
        max_size=12,
    ),
    rows=st.integers(1, 9),
    threads=st.integers(1, 3),
)
def test_cancelled_and_expired_calls_are_never_computed_and_all_others_answered(
    calls: list[tuple[list[int], str]], rows: int, threads: int
) -> None:
    model, blocker = FakeModel(instances=threads), FakeModel(row_by_row=True, instances=threads)
    now = [0.0]

    async def scenario(batcher: Batcher) -> None:
        blocker.gate.clear()
        blocked = [
            asyncio.create_task(batcher.classify(blocker, ["0"], None)) for _ in range(threads)
        ]
        await until(lambda: len(blocker.runs) == threads)
        tasks = [
            asyncio.create_task(
                batcher.classify(model, [str(n) for n in numbers], 1.0 if fate == "expired" else 9)
            )
            for numbers, fate in calls
        ]
        await asyncio.sleep(0)
        for task, (_, fate) in zip(tasks, calls, strict=True):
            if fate == "cancelled":
                task.cancel()
        await asyncio.sleep(0)
        now[0] = 1.0
        blocker.gate.set()
        await asyncio.gather(*blocked)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome, (numbers, fate) in zip(outcomes, calls, strict=True):
            if fate == "wanted":
                assert outcome == [expected_answer(number) for number in numbers]
            else:
                kind = DeadlineError if fate == "expired" else asyncio.CancelledError
                assert isinstance(outcome, kind)

    with_batcher(scenario, batch=BatchLimit(rows, 4096), threads=threads, clock=lambda: now[0])
    wanted = chain(*(numbers for numbers, fate in calls if fate == "wanted"))
    assert sorted(model.computed) == sorted(wanted)


def test_what_arrives_during_a_run_is_computed_together_in_the_next() -> None:
    model = FakeModel()

    async def scenario(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.classify(model, ["0"], None))
        await entered(model)
        others = [asyncio.create_task(batcher.classify(model, ["7"], None)) for _ in range(5)]
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(first, *others)

    with_batcher(scenario)
    assert model.runs == [[0], [7] * 5]


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="threads are scheduled so on Linux")
def test_compute_threads_never_cut_in_on_the_event_loop() -> None:
    policies: list[int] = []

    class Noting(FakeModel):
        def scores(self, rows: Sequence[TokenRow]) -> NDArray[np.float32]:
            policies.append(os.sched_getscheduler(0))
            return super().scores(rows)

    async def scenario(batcher: Batcher) -> None:
        await batcher.classify(Noting(), ["7"], None)

    with_batcher(scenario)
    assert policies == [os.SCHED_BATCH]
    assert os.sched_getscheduler(0) != os.SCHED_BATCH


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="threads are scheduled so on Linux")
def test_while_models_are_loaded_compute_threads_cut_in_on_those_who_give_way() -> None:
    """Old ones and new ones, until the last load has ended."""
    told: list[set[int]] = []

    def look() -> None:
        threads = [each for each in threading.enumerate() if each.name.startswith("compute-")]
        told.append({os.sched_getscheduler(each.native_id or 0) for each in threads})

    async def scenario(batcher: Batcher) -> None:
        await batcher.classify(FakeModel(), ["7"], None)  # it has come to its work
        with batcher.cutting_in():
            with batcher.cutting_in():
                batcher.grow_to(2)
            look()
        look()

    with_batcher(scenario)
    assert told == [{os.SCHED_OTHER}, {os.SCHED_BATCH}]


def test_a_large_call_lets_small_ones_pass() -> None:
    model = FakeModel()
    finished: list[str] = []

    async def call(batcher: Batcher, name: str, texts: list[str]) -> None:
        await batcher.classify(model, texts, None)
        finished.append(name)

    async def scenario(batcher: Batcher) -> None:
        model.gate.clear()
        large = asyncio.create_task(call(batcher, "large", ["7"] * 40))
        await entered(model)
        small = asyncio.create_task(call(batcher, "small", ["14"]))
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(large, small)

    with_batcher(scenario)
    assert finished == ["small", "large"]


def test_expired_work_is_dropped_before_it_is_computed() -> None:
    model = FakeModel()

    async def scenario(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.classify(model, ["1"], None))
        await entered(model)
        late = asyncio.create_task(batcher.classify(model, ["2"], 0.01))
        await asyncio.sleep(0.05)
        model.gate.set()
        await first
        with pytest.raises(DeadlineError):
            await late

    with_batcher(scenario)
    assert model.computed == [1]


def test_work_whose_caller_has_left_is_dropped_before_it_is_computed() -> None:
    model = FakeModel()

    async def scenario(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.classify(model, ["1"], None))
        await entered(model)
        left = asyncio.create_task(batcher.classify(model, ["2"], None))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        await first

    with_batcher(scenario)
    assert model.computed == [1]


def test_the_rest_of_a_large_call_is_dropped_when_its_caller_leaves() -> None:
    model = FakeModel()

    async def scenario(batcher: Batcher) -> None:
        model.gate.clear()
        call = asyncio.create_task(batcher.classify(model, ["3"] * 40, None))
        await entered(model)
        call.cancel()
        await asyncio.sleep(0)
        model.gate.set()

    with_batcher(scenario, batch=BatchLimit(4, 4096))
    assert len(model.computed) == 4


def test_a_full_queue_refuses_and_says_when_to_try_again() -> None:
    model = FakeModel()

    async def scenario(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.classify(model, ["1"] * 6, None))
        await entered(model)
        with pytest.raises(OverloadedError, match="6 rows wait and 8 may") as refusal:
            await batcher.classify(model, ["2"] * 3, None)
        assert 0 < refusal.value.retry_after_s <= 5
        second = asyncio.create_task(batcher.classify(model, ["3"] * 2, None))
        model.gate.set()
        await asyncio.gather(first, second)
        await batcher.classify(model, ["4"] * 8, None)

    with_batcher(scenario, limit=QueueLimit(8, 60.0))
    assert 2 not in model.computed


def test_one_bad_text_fails_its_own_call_alone() -> None:
    model = FakeModel()

    async def scenario(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.classify(model, ["1"], None))
        await entered(model)
        bad = asyncio.create_task(batcher.classify(model, ["bad", "2"], None))
        good = asyncio.create_task(batcher.classify(model, ["3"], None))
        await asyncio.sleep(0)
        model.gate.set()
        await first
        assert await good == [expected_answer(3)]
        with pytest.raises(EdgewrightError, match="cannot be tokenised"):
            await bad

    with_batcher(scenario)


class Panic(BaseException):
    """As pyo3 raises one where Rust code panics."""


@pytest.mark.parametrize("step", ["encode", "scores"])
@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), Panic("index out of bounds")])
def test_the_compute_thread_outlives_a_failure(
    failure: BaseException, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, failing = FakeModel(), FakeModel()

    def fail(_given: object) -> object:
        raise failure

    monkeypatch.setattr(failing, step, fail)

    async def scenario(batcher: Batcher) -> None:
        with pytest.raises(EdgewrightError, match="fake failed") as told:
            await batcher.classify(failing, ["1"], None)
        assert told.value.__cause__ is failure
        assert await batcher.classify(model, ["5"], None) == [expected_answer(5)]

    with_batcher(scenario)


@pytest.mark.parametrize(
    ("cut", "told"),
    [
        (lambda scores: scores[1:], "fake gave 1 scores for 2 inputs"),
        (lambda scores: scores[:, 0], "fake failed: AxisError"),
    ],
)
def test_a_model_that_gives_other_scores_than_it_must_leaves_nobody_without_an_answer(
    cut: Callable[[NDArray[np.float32]], NDArray[np.float32]], told: str
) -> None:
    class Cut(FakeModel):
        def scores(self, rows: Sequence[TokenRow]) -> NDArray[np.float32]:
            return cut(super().scores(rows))

    async def scenario(batcher: Batcher) -> None:
        with pytest.raises(EdgewrightError, match=told):
            await batcher.classify(Cut(), ["7", "7"], None)
        assert await batcher.classify(FakeModel(), ["5"], None) == [expected_answer(5)]

    with_batcher(scenario)


def test_scores_that_are_no_numbers_fail_their_row_and_are_counted() -> None:
    class Broken(FakeModel):
        def scores(self, rows: Sequence[TokenRow]) -> NDArray[np.float32]:
            scores = super().scores(rows)
            scores[np.array(self.runs[-1]) == 13] = np.nan
            return scores

    model, observer = Broken(), Observer()

    async def scenario(batcher: Batcher) -> None:
        results = await asyncio.gather(
            batcher.classify(model, ["6"], None),
            batcher.classify(model, ["6", "13"], None),
            return_exceptions=True,
        )
        assert results[0] == [expected_answer(6)]
        assert "no finite scores for text 1" in str(results[1])

    with_batcher(scenario, observer=observer)
    assert observer.bad_rows == 1


@pytest.mark.parametrize("row_by_row", [False, True])
def test_one_large_call_is_computed_by_all_threads_at_once(row_by_row: bool) -> None:
    model = FakeModel(row_by_row=row_by_row, instances=2)

    async def scenario(batcher: Batcher) -> None:
        model.gate.clear()
        call = asyncio.create_task(batcher.classify(model, ["7"] * 40, None))
        await until(lambda: len(model.runs) == 2)
        model.gate.set()
        assert await call == [expected_answer(7)] * 40

    with_batcher(scenario, threads=2)


def test_a_model_with_one_instance_runs_once_at_a_time_and_leaves_threads_to_others() -> None:
    narrow, other = FakeModel("narrow"), FakeModel("other")

    async def scenario(batcher: Batcher) -> None:
        narrow.gate.clear()
        calls = [asyncio.create_task(batcher.classify(narrow, ["7"] * 8, None)) for _ in range(3)]
        await entered(narrow)
        assert await batcher.classify(other, ["5"], None) == [expected_answer(5)]
        assert len(narrow.runs) == 1
        narrow.gate.set()
        await asyncio.gather(*calls)

    with_batcher(scenario, threads=2)


def test_the_wait_is_estimated_from_what_was_measured() -> None:
    now = [0.0]

    class Slow(FakeModel):
        def scores(self, rows: Sequence[TokenRow]) -> NDArray[np.float32]:
            now[0] += 0.5 * len(rows)
            return super().scores(rows)

    model = Slow()

    async def scenario(batcher: Batcher) -> None:
        await batcher.classify(model, ["7"] * 8, None)
        model.gate.clear()
        model.entered.clear()
        first = asyncio.create_task(batcher.classify(model, ["7"] * 8, None))
        await entered(model)
        assert batcher.queue.wait_s() == pytest.approx(4.0)
        with pytest.raises(OverloadedError, match="--max-wait of the server is 3"):
            await batcher.classify(model, ["7"], None)
        model.gate.set()
        await first
        assert batcher.queue.wait_s() == 0

    with_batcher(scenario, limit=QueueLimit(1000, 3.0), clock=lambda: now[0])


def test_a_caller_who_leaves_makes_room_at_once() -> None:
    model = FakeModel()

    async def scenario(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.classify(model, ["7"], None))
        await entered(model)
        second = asyncio.create_task(batcher.classify(model, ["7"] * 7, None))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        assert batcher.queue.rows == 1
        model.gate.set()
        await first

    with_batcher(scenario, limit=QueueLimit(8, 60.0))


def test_a_caller_who_leaves_during_one_run_is_not_computed_in_the_next() -> None:
    class Long(FakeModel):
        """Its texts have more tokens than they seemed, so that a batch becomes several runs."""

        def cost(self, given: str) -> int:
            return 1

    model, blocker = Long(), FakeModel()

    async def scenario(batcher: Batcher) -> None:
        blocker.gate.clear()
        blocked = asyncio.create_task(batcher.classify(blocker, ["1"], None))
        await entered(blocker)
        model.gate.clear()
        first = asyncio.create_task(batcher.classify(model, ["6"], None))
        second = asyncio.create_task(batcher.classify(model, ["13"], None))
        await asyncio.sleep(0)
        blocker.gate.set()
        await entered(model)
        second.cancel()
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(blocked, first)

    with_batcher(scenario, batch=BatchLimit(8, 7))
    assert model.computed == [6]


def test_what_a_caller_who_left_had_sent_is_let_go_at_once() -> None:
    class Text(str):
        """One that can be watched."""

    model = FakeModel()

    async def scenario(batcher: Batcher) -> None:
        model.gate.clear()
        first = asyncio.create_task(batcher.classify(model, ["7"], None))
        await entered(model)
        text = Text("14")
        kept = weakref.ref(text)
        left = asyncio.create_task(batcher.classify(model, [text], None))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait([left])
        del left, text
        gc.collect()
        assert kept() is None
        model.gate.set()
        await first

    with_batcher(scenario)


def test_whoever_leaves_while_his_inputs_are_prepared_is_wanted_no_more() -> None:
    prepared: list[Call] = []

    async def prepare(call: Call) -> list[str]:
        prepared.append(call)
        await asyncio.Event().wait()
        return []

    async def scenario(batcher: Batcher) -> None:
        left = asyncio.create_task(batcher.classify(FakeModel(), ["1"], None, prepare=prepare))
        await until(lambda: bool(prepared))
        assert prepared[0].wanted(0.0)
        left.cancel()
        await asyncio.wait([left])
        assert not prepared[0].wanted(0.0)

    with_batcher(scenario)


def test_what_is_prepared_only_after_the_end_is_refused() -> None:
    prepared: list[Call] = []

    async def scenario(batcher: Batcher) -> None:
        ready = asyncio.Event()

        async def prepare(call: Call) -> Sequence[str]:
            prepared.append(call)
            await ready.wait()
            return call.inputs

        late = asyncio.create_task(batcher.classify(FakeModel(), ["1"], None, prepare=prepare))
        await until(lambda: bool(prepared))
        await batcher.close()
        ready.set()
        with pytest.raises(NotReadyError):
            await late

    with_batcher(scenario)


def test_closing_computes_what_waits_and_refuses_what_comes() -> None:
    model = FakeModel()

    async def scenario(batcher: Batcher) -> None:
        model.gate.clear()
        waiting = [
            asyncio.create_task(batcher.classify(model, [str(number)] * 20, None))
            for number in range(4)
        ]
        await entered(model)
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError):
            await batcher.classify(model, ["9"], None)
        model.gate.set()
        await closing
        for number, task in enumerate(waiting):
            assert await task == [expected_answer(number)] * 20

    with_batcher(scenario)


def test_of_equal_scores_the_lower_class_comes_first() -> None:
    scores = np.array([[0.25, 0.5, 0.25], [0.2, 0.4, 0.4]], np.float32)
    classes, best = best_first(scores)
    assert classes == [[1, 0, 2], [1, 2, 0]]
    assert best[0] == [0.5, 0.25, 0.25]


def test_scores_that_are_numbers_do_not_make_up_for_extras_that_are_none() -> None:
    class Holed(FakeModel):
        def scores_with(
            self, rows: Sequence[TokenRow], extras: Sequence[str]
        ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
            scores, _ = super().scores_with(rows, extras)
            return scores, {"features": np.full((len(rows), 4), np.inf, np.float32)}

    model, observer = Holed(), Observer()

    async def scenario(batcher: Batcher) -> None:
        with pytest.raises(EdgewrightError, match="no finite scores for text 0"):
            await batcher.classify(model, ["1"], None, extras=["features"])
        assert await batcher.classify(model, ["1"], None) == [expected_answer(1)]

    with_batcher(scenario, observer=observer)
    assert observer.bad_rows == 1


START = threading.Thread.start


def no_thread(thread: threading.Thread) -> None:
    """In place of ``Thread.start`` where the system gives but three more."""
    if thread.name.startswith("compute-") and int(thread.name.removeprefix("compute-")) >= 3:
        raise RuntimeError("can't start new thread")
    START(thread)


def test_threads_that_the_system_does_not_give_are_told_and_those_there_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = FakeModel()
    monkeypatch.setattr(threading.Thread, "start", no_thread)

    async def scenario(batcher: Batcher) -> None:
        with pytest.raises(NotReadyError, match="after 3 of 5 threads .* start new thread.*--inst"):
            batcher.grow_to(5)
        await until(lambda: [each.name for each in threading.enumerate()].count("compute-2") == 0)
        assert batcher.alive
        assert await batcher.classify(model, ["7"], None) == [expected_answer(7)]
        batcher.grow_to(3)
        assert batcher.alive

    with_batcher(scenario)


def test_a_version_without_threads_to_compute_on_is_refused_and_the_server_is_alive(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = launch(instances=5, load=False)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(IntegrityError, match="news version 1 cannot be loaded: after 3 of 5"):
        running.load()
    assert running.server.is_alive()
