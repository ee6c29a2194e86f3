from __future__ import annotations

import contextlib
import gc
import weakref
from unittest.mock import Mock

import pytest

from edgewright.errors import CallerLimitError, DeadlineError, InputError, OverloadedError
from edgewright.serve.admission import Limits, Queue, QueueLimit
from edgewright.serve.call import Call
from edgewright.serve.pace import Pace, Stage

from .compute_fakes import FakeModel

LIMITS = Limits(max_texts=3, max_text_chars=10)


def call(model: FakeModel, rows: int) -> Call:
    """Of this many rows with a cost of 1 each."""
    return Call(model, ["0"] * rows, 1.0, Mock())


@pytest.mark.parametrize("top_k", [0, 1, 5])
def test_good_input_is_taken(top_k: int) -> None:
    LIMITS.check(["ten chars.", "ünïcödé 東京", "."], top_k, classes=5)


@pytest.mark.parametrize(
    ("texts", "top_k", "field", "message"),
    [
        ([], 0, "texts", "texts is empty"),
        (["a"] * 4, 0, "texts", "texts has 4 entries and at most 3"),
        (["a", ""], 0, "texts[1]", r"texts\[1\] is empty"),
        ([" \t\n\u3000"], 0, "texts[0]", r"texts\[0\] is empty"),
        (["a", "a", "eleven char"], 0, "texts[2]", "has 11 characters and at most 10"),
        (["a"], 6, "top_k", "top_k is 6; it must be 0 .all. to 5"),
        (["a"], -1, "top_k", "top_k is -1"),
    ],
)
def test_bad_input_is_refused_by_its_field(
    texts: list[str], top_k: int, field: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        LIMITS.check(texts, top_k, classes=5)
    assert refusal.value.field == field


def test_one_caller_has_no_more_rows_than_he_may_and_leaves_room_for_others() -> None:
    queue, model = Queue(QueueLimit(10, 60.0, caller_rows=4)), FakeModel()

    def called_by(caller: str, rows: int) -> Call:
        made = call(model, rows)
        made.caller = caller
        return made

    first = called_by("greedy", 3)
    queue.enter(first, None)
    with pytest.raises(CallerLimitError, match="greedy has 3 rows waiting and asks for 2 more"):
        queue.enter(called_by("greedy", 2), None)
    queue.enter(called_by("modest", 4), None)
    queue.leave(first)
    queue.enter(called_by("greedy", 4), None)
    assert queue.rows == 8


def test_callers_who_have_left_are_not_kept() -> None:
    queue, model = Queue(QueueLimit(10, 60.0, caller_rows=4)), FakeModel()
    for number in range(100):
        made = call(model, 2)
        made.caller = f"caller {number}"
        queue.enter(made, None)
        queue.leave(made)
    assert not queue._rows_of_callers


def test_the_queue_counts_rows_in_and_out() -> None:
    queue, model = Queue(QueueLimit(10, 60.0)), FakeModel()
    six, four = call(model, 6), call(model, 4)
    queue.enter(six, None)
    with pytest.raises(OverloadedError, match="6 rows wait and 10 may"):
        queue.enter(call(model, 5), None)
    queue.enter(four, None)
    queue.leave(six)
    queue.enter(call(model, 5), None)
    assert queue.rows == 9


def learned(queue: Queue, model: FakeModel, seconds_per_unit: float) -> Queue:
    """``queue``, once it knows how fast ``model`` is."""
    first = call(model, 1)
    queue.enter(first, None)
    queue.leave(first)
    queue.learn(model, Stage.COMPUTE, 100, 100 * seconds_per_unit, 1)
    return queue


def test_what_would_wait_too_long_is_refused_by_the_estimate() -> None:
    model = FakeModel()
    queue = learned(Queue(QueueLimit(1000, 2.0)), model, 0.1)
    waiting = call(model, 30)
    queue.enter(waiting, None)  # what waits before it counts, and nothing did
    assert queue.wait_s() == pytest.approx(3.0)
    with pytest.raises(OverloadedError, match="about 3 seconds of work wait and --max-wait of"):
        queue.enter(call(model, 1), None)
    queue.computed(waiting, 10)
    queue.enter(call(model, 1), None)
    assert queue.wait_s() == pytest.approx(2.1)


def test_whether_anybody_may_be_let_in_is_told_without_a_call() -> None:
    model = FakeModel()
    by_rows, by_time = Queue(QueueLimit(3, 60.0)), learned(Queue(QueueLimit(1000, 2.0)), model, 0.1)
    by_rows.enter(call(model, 2), None)
    by_time.enter(call(model, 20), None)
    assert by_rows.refusal() is by_time.refusal() is None
    by_rows.enter(call(model, 1), None)
    by_time.enter(call(model, 10), None)
    for queue, message in ((by_rows, "3 rows wait and 3 may"), (by_time, "about 3 seconds of")):
        refusal = queue.refusal()
        assert refusal is not None
        assert message in str(refusal)
        with pytest.raises(OverloadedError, match=message) as same:
            queue.enter(call(model, 1), None)
        assert same.value.retry_after_s == refusal.retry_after_s > 0


def test_a_large_call_before_it_refuses_no_small_one_unheard() -> None:
    model = FakeModel()
    queue = learned(Queue(QueueLimit(1000, 2.0)), model, 0.1)
    large = call(model, 50)
    large.large = True
    queue.enter(large, None)
    assert queue.refusal() is None
    queue.enter(call(model, 1), None)


@pytest.mark.parametrize(
    ("seconds_per_unit", "delay"), [(0.0, 0.05), (0.001, 0.05), (0.01, 0.5), (0.5, 5.0)]
)
def test_the_delay_follows_the_speed_of_compute_within_bounds(
    seconds_per_unit: float, delay: float
) -> None:
    model = FakeModel()
    queue = learned(Queue(QueueLimit(100, 1000.0)), model, seconds_per_unit)
    queue.enter(call(model, 100), None)
    with pytest.raises(OverloadedError) as refusal:
        queue.enter(call(model, 1), None)
    assert refusal.value.retry_after_s == pytest.approx(delay)


def test_a_deadline_that_cannot_be_met_is_refused_before_it_costs_anything() -> None:
    model = FakeModel()
    queue = learned(Queue(QueueLimit(1000, 60.0)), model, 0.1)  # a batch takes 1 second
    queue.enter(call(model, 1), 0.01)  # nothing waits, so that it is tried
    queue.enter(call(model, 9), None)
    with pytest.raises(OverloadedError, match="would take about 2.1 seconds.* leaves 2;"):
        queue.enter(call(model, 1), 2.0)
    queue.enter(call(model, 1), 2.2)
    with pytest.raises(DeadlineError):
        queue.enter(call(model, 1), 0.0)
    assert queue.rows == 11


def test_small_calls_do_not_wait_for_all_of_a_large_one() -> None:
    model = FakeModel()
    queue = learned(Queue(QueueLimit(1000, 2.0)), model, 0.1)
    large = call(model, 50)
    large.large = True
    queue.enter(large, None)
    assert queue.wait_s(large=False) == 0
    assert queue.wait_s(large=True) == pytest.approx(5.0)
    queue.enter(call(model, 10), None)
    assert queue.wait_s(large=False) == pytest.approx(2.0)
    assert queue.wait_s(large=True) == pytest.approx(6.0)


def test_decoding_and_computing_share_the_cores() -> None:
    model = FakeModel()
    queue = learned(Queue(QueueLimit(1000, 60.0)), model, 0.1)
    queue.learn(model, Stage.DECODE, 10, 8.0, 4)
    queue.enter(call(model, 10), None)
    assert queue.wait_s() == pytest.approx(3.0)


def test_a_large_batch_tells_more_of_the_speed_than_a_small_one() -> None:
    pace = Pace()
    for _ in range(20):
        pace.learn(Stage.COMPUTE, 1, 0.1, 1)
    assert pace.seconds_per_unit == pytest.approx(0.1)
    pace.learn(Stage.COMPUTE, 1000, 10.0, 1)
    assert pace.seconds_per_unit < 0.011


@pytest.mark.parametrize("limit", [QueueLimit(100, 1000.0), QueueLimit(10**6, 10.0)])
def test_a_flood_of_one_model_leaves_room_for_another(limit: QueueLimit) -> None:
    """By rows as by time: 100 of them are 10 seconds."""
    flood, other = FakeModel("flood"), FakeModel("other")
    queue = learned(learned(Queue(limit), flood, 0.1), other, 0.1)
    for _ in range(200):
        with contextlib.suppress(OverloadedError):
            queue.enter(call(flood, 1), None)
    assert 75 <= queue.rows <= 85
    queue.enter(call(other, 1), None)
    with pytest.raises(OverloadedError):
        queue.enter(call(flood, 1), None)


def test_one_model_alone_may_fill_the_queue() -> None:
    model = FakeModel()
    queue = learned(Queue(QueueLimit(100, 1000.0)), model, 0.1)
    for _ in range(100):
        queue.enter(call(model, 1), None)
    assert queue.rows == 100


def test_a_model_that_is_no_longer_served_is_not_kept() -> None:
    model = FakeModel()
    queue = learned(Queue(QueueLimit(100, 1.0)), model, 0.1)
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None
    assert queue.wait_s() == 0


def test_a_model_that_takes_the_place_of_another_is_counted() -> None:
    first, second = FakeModel(), FakeModel()
    queue = learned(Queue(QueueLimit(100, 60.0)), first, 0.1)
    del first
    gc.collect()
    learned(queue, second, 0.5)
    queue.enter(call(second, 10), None)
    assert queue.wait_s() == pytest.approx(5.0)


def test_room_is_kept_for_those_who_were_let_in_and_have_not_come() -> None:
    queue, model = Queue(QueueLimit(10, 60.0)), FakeModel()
    for _ in range(8):
        queue.enter(call(model, 1), None)
    assert queue.refusal(coming=1) is None
    kept = queue.refusal(coming=2)
    assert kept is not None
    assert "2 calls wait for room" in str(kept)


def test_those_are_taken_to_be_as_large_as_calls_are_lately() -> None:
    model = FakeModel()
    by_rows = Queue(QueueLimit(10, 60.0))
    by_time = learned(Queue(QueueLimit(1000, 2.0)), model, 0.1)
    for queue in (by_rows, by_time):
        for _ in range(100):
            large = call(model, 5)
            queue.enter(large, None)
            queue.leave(large)
    assert by_rows.refusal(coming=2) is None
    assert by_rows.refusal(coming=3) is not None
    assert by_time.refusal(coming=4) is None  # each takes half a second
    assert by_time.refusal(coming=5) is not None


def test_whoever_leaves_is_told_of_once_his_room_is_free() -> None:
    queue, model = Queue(QueueLimit(10, 60.0)), FakeModel()
    rows: list[int] = []
    queue.on_leave = lambda: rows.append(queue.rows)
    calls = [call(model, 3), call(model, 2)]
    for each in calls:
        queue.enter(each, None)
    for each in calls:
        queue.leave(each)
    assert rows == [2, 0]
