"""Which calls make the next batch: first come first served, and nobody starves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright.serve.call import Call, Encoded, Row
from edgewright.serve.line import Batch, BatchLimit, EncodedRun, Line

from .compute_fakes import FakeModel

LIMIT = BatchLimit(rows=4, tokens=20)


@pytest.fixture(scope="module", autouse=True)
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """That of the futures, which nobody awaits here."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield made
    asyncio.set_event_loop(None)
    made.close()


def call(
    model: FakeModel, numbers: Sequence[int], deadline: float = 1.0, limit: BatchLimit = LIMIT
) -> Call:
    future = asyncio.get_event_loop_policy().get_event_loop().create_future()
    made = Call(model, [str(number) for number in numbers], deadline, future)
    made.large = limit.exceeded_by(made)
    return made


def inputs(taken: Batch | EncodedRun | None) -> list[int]:
    assert taken is not None
    return [int(row.input) for row in taken.rows]


def batch_of(line: Line, idle: int = 1) -> Batch:
    taken = line.take(0.0, idle)
    assert isinstance(taken, Batch)
    return taken


def encoded(batch: Batch, places: Sequence[int]) -> EncodedRun:
    rows = [batch.rows[place] for place in places]
    return EncodedRun(
        batch.model, rows, batch.model.encode([row.input for row in rows]), Encoded(0.0, 0.0)
    )


def taken_in_turn(line: Line, idle: int = 1) -> list[Batch]:
    batches = []
    while (batch := line.take(0.0, idle)) is not None:
        assert isinstance(batch, Batch)
        batches.append(batch)
        line.release(batch)
    assert len(line) == 0
    return batches


def drained(line: Line, idle: int = 1) -> list[list[int]]:
    return [inputs(batch) for batch in taken_in_turn(line, idle)]


def test_the_oldest_call_decides_whose_turn_it_is_and_its_model_fills_the_batch() -> None:
    a, b = FakeModel("a"), FakeModel("b")
    line = Line(LIMIT)
    for model, number in [(a, 7), (b, 14), (a, 21), (b, 28), (a, 35)]:
        line.add(call(model, [number]))
    assert drained(line) == [[7, 21, 35], [14, 28]]


def test_a_flood_of_one_model_lets_a_call_of_another_pass_when_it_is_the_oldest() -> None:
    flood, other = FakeModel("flood"), FakeModel("other")
    line = Line(LIMIT)
    for _ in range(6):
        line.add(call(flood, [7]))
    line.add(call(other, [14]))
    for _ in range(50):
        line.add(call(flood, [21]))
    assert drained(line)[:3] == [[7] * 4, [7, 7, 21, 21], [14]]


def test_large_calls_and_small_ones_take_turns() -> None:
    model, line = FakeModel(), Line(LIMIT)
    line.add(call(model, [7] * 12))
    for _ in range(10):
        line.add(call(model, [14]))
    small, large = [14] * 4, [7] * 4
    assert drained(line) == [small, large, small, large, [14] * 2, large]


def test_a_batch_ends_at_its_tokens_but_holds_at_least_one_row() -> None:
    model, line = FakeModel(), Line(BatchLimit(rows=100, tokens=13))
    for number in [6, 5, 6, 6]:  # 7, 6, 7 and 7 tokens
        line.add(call(model, [number]))
    assert drained(line) == [[6, 5], [6], [6]]
    tight = Line(BatchLimit(rows=100, tokens=1))
    tight.add(call(model, [6, 6]))
    assert drained(tight) == [[6], [6]]


def test_idle_threads_get_equal_shares_of_what_waits() -> None:
    model, line = FakeModel(instances=2), Line(BatchLimit(rows=100, tokens=100))
    for _ in range(6):
        line.add(call(model, [7]))
    first, second = line.take(0.0, idle=2), line.take(0.0, idle=1)
    assert (inputs(first), inputs(second)) == ([7] * 3, [7] * 3)


def test_a_thread_leaves_what_another_will_take_sooner_than_it_would_compute_it() -> None:
    """While three are computed and four wait, half of the seven are three and a half."""
    model, line = FakeModel(instances=2), Line(BatchLimit(rows=100, tokens=100))
    for _ in range(6):
        line.add(call(model, [6]))
    first = line.take(0.0, idle=2)
    line.add(call(model, [6]))
    second = line.take(0.0, idle=1)
    assert (inputs(first), inputs(second)) == ([6] * 3, [6] * 3)
    assert first is not None
    line.release(first)
    for _ in range(5):
        line.add(call(model, [6]))
    assert inputs(line.take(0.0, idle=1)) == [6] * 4  # of nine, the second's among them


def test_no_more_batches_of_a_model_run_than_it_has_instances() -> None:
    narrow, wide = FakeModel("narrow"), FakeModel("wide", instances=2)
    line = Line(BatchLimit(rows=1, tokens=100))
    for model in (narrow, narrow, wide):
        line.add(call(model, [7]))
    first = line.take(0.0, idle=3)
    second = line.take(0.0, idle=2)
    assert first is not None
    assert second is not None
    assert (first.model, second.model) == (narrow, wide)
    assert line.take(0.0, idle=1) is None
    line.release(first)
    third = line.take(0.0, idle=1)
    assert third is not None
    assert third.model is narrow


def test_encoded_runs_come_before_calls_where_their_model_has_an_instance() -> None:
    narrow, wide = FakeModel("narrow"), FakeModel("wide", instances=2)
    line = Line(BatchLimit(rows=3, tokens=100))
    for model, number in [(narrow, 1), (narrow, 2), (narrow, 3), (wide, 4), (narrow, 5)]:
        line.add(call(model, [number]))
    first = batch_of(line)
    line.hand_over(first, [encoded(first, [1]), encoded(first, [2])])
    assert len(line) == 4
    assert inputs(line.take(0.0, idle=1)) == [4]  # no second instance for what is encoded
    line.release(first)
    second = line.take(0.0, idle=1)
    assert (inputs(second), line.take(0.0, idle=1)) == ([2], None)
    assert second is not None
    line.release(second)
    third = line.take(0.0, idle=1)
    assert inputs(third) == [3]
    assert third is not None
    line.release(third)
    assert inputs(line.take(0.0, idle=1)) == [5]


def test_what_is_encoded_and_not_yet_computed_counts_as_work_of_others() -> None:
    """Of ten rows a thread has taken five; with them the other's part stays half of all."""
    model, line = FakeModel(instances=2), Line(BatchLimit(rows=100, tokens=100))
    for _ in range(10):
        line.add(call(model, [6]))
    first = batch_of(line, idle=2)
    line.hand_over(first, [encoded(first, [1, 2, 3]), encoded(first, [4])])
    line.release(first)
    second = line.take(0.0, idle=2)
    assert second is not None
    line.release(second)
    assert isinstance(line.take(0.0, idle=1), EncodedRun)
    for _ in range(2):
        line.add(call(model, [6]))
    assert inputs(line.take(0.0, idle=1)) == [6] * 4  # of seven, and of the one being computed


def test_small_calls_and_large_ones_are_told_apart_by_their_batches() -> None:
    model, line = FakeModel(), Line(LIMIT)
    line.add(call(model, [7] * 5))
    line.add(call(model, [14]))
    assert [(inputs(each), each.large) for each in taken_in_turn(line)] == [
        ([14], False),
        ([7] * 4, True),
        ([7], True),
    ]


def test_a_model_that_runs_row_by_row_shares_its_rows_between_threads() -> None:
    model, line = FakeModel(row_by_row=True, instances=2), Line(LIMIT)
    line.add(call(model, [7, 14, 21]))
    assert drained(line) == [[7], [14], [21]]


def test_expired_and_abandoned_calls_are_set_aside() -> None:
    model, line = FakeModel(), Line(LIMIT)
    late, left, discarded, good = (call(model, [n], 9.0) for n in (7, 14, 21, 28))
    late.deadline = 1.0
    for each in (late, left, discarded, good):
        line.add(each)
    left.future.cancel()
    line.discard(discarded)
    batch = line.take(1.0, idle=1)
    assert isinstance(batch, Batch)
    assert inputs(batch) == [28]
    assert batch.expired == [late, left]
    assert len(line) == 0


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.integers(0, 2),  # model
            st.lists(st.integers(0, 20), min_size=1, max_size=15),
            st.sampled_from(["wanted", "wanted", "expired", "left", "discarded"]),
        ),
        max_size=25,
    ),
    rows=st.integers(1, 6),
    tokens=st.integers(1, 40),
    idle=st.integers(1, 3),
    data=st.data(),
)
def test_every_wanted_row_is_taken_once_and_no_other(
    calls: list[tuple[int, list[int], str]], rows: int, tokens: int, idle: int, data: st.DataObject
) -> None:
    models = [
        FakeModel("a", instances=3),
        FakeModel("b", row_by_row=True, instances=2),
        FakeModel("c"),
    ]
    limit = BatchLimit(rows, tokens)
    line = Line(limit)
    waiting: list[Call] = []
    computed: list[Row] = []
    running: list[Batch | EncodedRun] = []

    def take() -> None:
        if (taken := line.take(1.0, idle)) is None:
            return
        running.append(taken)
        kept = list(taken.rows)
        if isinstance(taken, Batch) and len(kept) > 1 and data.draw(st.booleans()):
            line.hand_over(taken, [encoded(taken, [place]) for place in range(1, len(kept))])
            kept = kept[:1]
        computed.extend(kept)

    for model, numbers, fate in calls:
        made = call(models[model], numbers, 0.0 if fate == "expired" else 9.0, limit)
        line.add(made)
        if fate == "left":
            made.future.cancel()
        if fate == "discarded":
            line.discard(made)
        if fate == "wanted":
            waiting.append(made)
        if data.draw(st.booleans()):  # a thread comes in between
            take()
    while len(line):
        if running:
            line.release(running.pop(0))
        take()
    expected = [(id(each), place) for each in waiting for place in range(len(each.inputs))]
    found = [(id(row.call), row.place) for row in computed]
    assert sorted(found) == sorted(expected)


@settings(max_examples=60, deadline=None)
@given(
    flood=st.lists(st.lists(st.just(7), min_size=1, max_size=9), min_size=1, max_size=30),
    victim=st.lists(st.just(14), min_size=1, max_size=12),
)
def test_a_call_is_finished_after_what_came_before_it_and_as_much_again(
    flood: list[list[int]], victim: list[int]
) -> None:
    """However many calls keep coming behind it."""
    model, other = FakeModel("flood"), FakeModel("victim")
    line = Line(LIMIT)
    for numbers in flood:
        line.add(call(model, numbers))
    waiting = call(other, victim)
    line.add(waiting)
    before = sum(len(numbers) for numbers in flood)
    batches = 0
    while waiting.taken < len(victim):
        line.add(call(model, [7] * 9))  # more than a batch takes away
        line.add(call(model, [7] * 4))
        batch = line.take(0.0, 1)
        assert batch is not None
        line.release(batch)
        batches += 1
        assert batches <= 2 * (before + len(victim))
