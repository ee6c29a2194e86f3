"""Several sessions behind one: each runs one thing at a time, and none is lost."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.backends import TensorSpec
from edgewright.serve.sessions import Sessions


class One:
    """Notes whether two threads ever run it at once."""

    inputs = (TensorSpec("x", "float32", (-1,)),)
    outputs = (TensorSpec("y", "float32", (-1,)),)

    def __init__(self, together: threading.Barrier | None = None) -> None:
        self.runs = 0
        self._together = together
        self._busy = threading.Lock()

    def run(
        self, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        assert self._busy.acquire(blocking=False)
        if self._together is not None:
            self._together.wait(60)
        self.runs += 1
        self._busy.release()
        if np.isnan(arrays["x"]).any():
            raise ValueError("no number")
        return {"y": arrays["x"] + 1}


def feed(value: float) -> dict[str, NDArray[Any]]:
    return {"x": np.array([value], np.float32)}


def test_as_many_runs_go_on_at_once_as_there_are_sessions() -> None:
    together = threading.Barrier(2)
    ones = [One(together), One(together)]
    sessions = Sessions(ones)
    assert (sessions.inputs, sessions.outputs) == (One.inputs, One.outputs)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda value: sessions.run(feed(value))["y"][0], range(20)))
    assert answers == [value + 1 for value in range(20)]
    assert sum(one.runs for one in ones) == 20


def test_a_session_whose_run_fails_is_used_again() -> None:
    sessions = Sessions([One()])
    with pytest.raises(ValueError, match="no number"):
        sessions.run(feed(np.nan))
    assert sessions.run(feed(1.0))["y"] == [2.0]


def test_one_caller_always_gets_the_same_session() -> None:
    sessions = Sessions([One(), One()])
    for value in range(5):
        sessions.run(feed(value))
    assert sorted(one.runs for one in sessions.each) == [0, 5]  # type: ignore[attr-defined]
