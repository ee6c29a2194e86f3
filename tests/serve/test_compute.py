"""What a compute thread computes of a batch itself, and what it hands over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from edgewright.serve.call import Call, Row
from edgewright.serve.compute import Compute, Computed
from edgewright.serve.line import Batch, EncodedRun

from .compute_fakes import FakeModel, Observer, expected_answer

SHORT, LONG = 700, 6  # one token and seven


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


class Thread:
    """What a compute thread does, on the thread of the test."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.told: list[Computed] = []
        self.handed: list[EncodedRun] = []
        self.compute = Compute(1000, Observer(), lambda: 0.0, self.told.append)

    def batch(self, model: FakeModel, *calls: Sequence[object], large: bool = False) -> Batch:
        made = [
            Call(model, [str(each) for each in inputs], 1.0, self._loop.create_future())
            for inputs in calls
        ]
        rows = [Row(call, place) for call in made for place in range(len(call.inputs))]
        return Batch(model, rows, sum(row.cost for row in rows), large=large)

    def takes(self, taken: Batch | EncodedRun) -> None:
        self.compute(taken, lambda _batch, runs: self.handed.extend(runs))


@pytest.fixture
def thread(loop: asyncio.AbstractEventLoop) -> Thread:
    return Thread(loop)


def test_of_a_batch_one_run_is_computed_and_the_others_are_handed_over(thread: Thread) -> None:
    model = FakeModel()
    batch = thread.batch(model, [LONG, SHORT], [LONG], [SHORT], [LONG], [LONG])
    thread.takes(batch)
    assert model.runs == [[SHORT, SHORT]]
    (later,) = thread.handed
    assert [row.input for row in later.rows] == [str(LONG)] * 4
    assert later.cost == 4 * 7
    thread.takes(later)
    assert model.runs == [[SHORT, SHORT], [LONG] * 4]
    told = [
        (row, outcome)
        for each in thread.told
        for row, outcome in zip(each.rows, each.outcomes, strict=True)
    ]
    assert sorted(batch.rows, key=id) == sorted((row for row, _ in told), key=id)
    assert all(outcome == expected_answer(int(row.input)) for row, outcome in told)


def test_a_large_calls_batch_stays_with_its_thread(thread: Thread) -> None:
    """Else all threads would be busy with it when the turn of small calls comes."""
    model = FakeModel()
    thread.takes(thread.batch(model, [LONG, SHORT] * 4, large=True))
    assert (thread.handed, model.runs) == ([], [[SHORT] * 4, [LONG] * 4])


def test_what_nobody_waits_for_any_more_is_told_once_and_not_computed(thread: Thread) -> None:
    model = FakeModel()
    batch = thread.batch(model, [LONG] * 2, [SHORT] * 2, [LONG] * 2)
    thread.takes(batch)
    (later,) = thread.handed
    batch.rows[0].call.future.cancel()
    thread.takes(later)
    assert model.runs == [[SHORT] * 2, [LONG] * 2]
    assert sorted(len(each.rows) for each in thread.told) == [2, 2, 2]
    assert {row.call for each in thread.told for row in each.rows} == {
        row.call for row in batch.rows
    }


def test_of_calls_that_cannot_be_encoded_together_each_is_told_by_itself(thread: Thread) -> None:
    model = FakeModel()
    thread.takes(thread.batch(model, [SHORT], ["bad"], [LONG]))
    assert model.runs == [[SHORT]]
    assert [[row.input for row in each.rows] for each in thread.told] == [["bad"], [str(SHORT)]]
    (later,) = thread.handed
    assert [row.input for row in later.rows] == [str(LONG)]


def test_a_run_that_fails_is_computed_again_call_by_call(thread: Thread) -> None:
    class Fussy(FakeModel):
        def scores(self, rows):  # type: ignore[no-untyped-def]
            if any(row.input_ids[0] == 13 for row in rows):
                raise RuntimeError("it dislikes 13")
            return super().scores(rows)

    model = Fussy()
    thread.takes(thread.batch(model, [LONG, LONG], [13], [LONG]))
    assert model.runs == [[LONG, LONG], [LONG]]
    assert [len(each.rows) for each in thread.told] == [2, 1, 1]
    assert "it dislikes 13" in str(thread.told[1].outcomes[0])
