from __future__ import annotations

import uuid

from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright.serve.prediction_ids import PredictionIds

MILLISECOND = 1_000_000


def test_an_id_is_a_version_7_uuid_that_holds_its_time() -> None:
    (text,) = PredictionIds(node=5, clock_ns=lambda: 1_700_000_000_123 * MILLISECOND).take(1)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == 1_700_000_000_123
    assert parsed.node == 5


@settings(deadline=None)
@given(steps=st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 100)), min_size=1, max_size=20))
def test_ids_ascend_whatever_the_clock_does(steps: list[tuple[int, int]]) -> None:
    now = [1_700_000_000_000 * MILLISECOND]
    ids = PredictionIds(clock_ns=lambda: now[0])
    taken: list[str] = []
    for step_ms, count in steps:
        now[0] += step_ms * MILLISECOND
        taken += ids.take(count)
    assert taken == sorted(set(taken))
    assert all(uuid.UUID(each).version == 7 for each in taken)


def test_more_ids_than_a_millisecond_holds_run_into_the_next() -> None:
    ids = PredictionIds(node=0, clock_ns=lambda: MILLISECOND)
    (first,) = ids.take(1)
    ids._last = (2 << 26) - 1  # as after 2**26 ids within the millisecond
    (last,) = ids.take(1)
    assert first < last
    assert uuid.UUID(last).int >> 80 == 2


def test_replicas_and_restarts_do_not_repeat_each_other() -> None:
    replicas = [PredictionIds(clock_ns=lambda: MILLISECOND) for _ in range(50)]
    assert len({each.take(1)[0] for each in replicas}) == 50
