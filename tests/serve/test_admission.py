from __future__ import annotations

import pytest

from edgewright.errors import InputError, OverloadedError
from edgewright.serve.admission import Limits, Queue

LIMITS = Limits(max_texts=3, max_text_chars=10)


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


def test_the_queue_counts_rows_in_and_out() -> None:
    queue = Queue(10, lambda: 0.1)
    queue.enter(6)
    with pytest.raises(OverloadedError):
        queue.enter(5)
    queue.enter(4)
    queue.leave(6)
    queue.enter(5)
    assert queue.rows == 9


@pytest.mark.parametrize(
    ("seconds_per_row", "delay"), [(0.0, 0.05), (0.01, 0.5), (10.0, 5.0), (1e9, 5.0)]
)
def test_the_delay_follows_the_speed_of_compute_within_bounds(
    seconds_per_row: float, delay: float
) -> None:
    queue = Queue(100, lambda: seconds_per_row)
    queue.enter(100)
    with pytest.raises(OverloadedError) as refusal:
        queue.enter(1)
    assert refusal.value.retry_after_s == pytest.approx(delay)
