"""Ten times as many calls as can be answered: goodput, latency and memory stay as they were.

The first tests are a simulation: the real queue and line, in a time of their own. The last one is a
real server on loopback.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import grpc
import pytest
from numpy.typing import NDArray

from edgewright.errors import OverloadedError
from edgewright.serve.admission import Queue, QueueLimit
from edgewright.serve.call import Answer, Call
from edgewright.serve.line import Batch, BatchLimit, Line
from edgewright.serve.models import ServedModel
from edgewright.serve.pace import Stage

from .compute_fakes import FakeModel
from .conftest import Launch

THREADS = 2
RUN_S, TOKEN_S = 0.0006, 0.00004  # about MiniLM's, int8
BATCH = BatchLimit(rows=32, tokens=4096)
ANSWER = Answer([0], [1.0], False)
UNBOUNDED = 10**9


class Texts(FakeModel):
    """Every text has as many tokens as its number says."""

    def cost(self, given: str) -> int:
        return int(given)


class Waiting:
    """A future that calls back at once."""

    def __init__(self, answered: Callable[[], None]) -> None:
        self._answered = answered

    def done(self) -> bool:
        return False

    def set_result(self, _answers: Sequence[Answer]) -> None:
        self._answered()


@dataclass
class Simulation:
    """A server whose threads take as long as a formula says."""

    limit: QueueLimit
    tokens: int = 14  # of each text
    now: float = 0.0
    latencies: list[float] = field(default_factory=list)  # of calls answered in time
    late: int = 0  # rows computed for calls that had expired meanwhile
    refused: int = 0
    most_rows: int = 0  # in the queue at once

    def __post_init__(self) -> None:
        self._model = Texts(instances=THREADS)
        self._queue, self._line = Queue(self.limit), Line(BATCH)
        self._idle = THREADS
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    @property
    def capacity(self) -> float:
        """Calls a second that full batches would answer."""
        return THREADS * BATCH.rows / (RUN_S + TOKEN_S * BATCH.rows * self.tokens)

    def run(self, load: float, seconds: float, time_left_s: float | None = None) -> float:
        """Calls answered in time by second, where ``load`` times the capacity come, evenly."""
        calls_per_s = load * self.capacity
        for index in range(int(calls_per_s * seconds)):
            self._at(index / calls_per_s, lambda: self._arrive(time_left_s))
        while self._events and self._events[0][0] <= seconds:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        return len(self.latencies) / seconds

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen))

    def _arrive(self, time_left_s: float | None) -> None:
        came, deadline = self.now, self.now + (time_left_s or UNBOUNDED)
        waiting: Any = Waiting(lambda: self._answered(call, came))
        call = Call(self._model, [str(self.tokens)], deadline, waiting)
        try:
            self._queue.enter(call, time_left_s)
        except OverloadedError:
            self.refused += 1
            return
        self.most_rows = max(self.most_rows, self._queue.rows)
        self._line.add(call)
        self._start()

    def _start(self) -> None:
        while self._idle and (batch := self._line.take(self.now, self._idle)) is not None:
            self._idle -= 1
            for call in batch.expired:
                self._queue.leave(call)
            cost = sum(row.cost for row in batch.rows)
            seconds = RUN_S + TOKEN_S * cost if cost else 0.0
            self._at(self.now + seconds, lambda b=batch, c=cost, s=seconds: self._done(b, c, s))

    def _done(self, batch: Batch, cost: int, seconds: float) -> None:
        for row in batch.rows:
            self._queue.computed(row.call, row.cost)
            row.call.settle(row.place, ANSWER)
        if cost:
            self._queue.learn(batch.model, Stage.COMPUTE, cost, seconds, THREADS)
        self._line.release(batch)
        self._idle += 1
        self._start()

    def _answered(self, call: Call, came: float) -> None:
        self._queue.leave(call)
        if self.now < call.deadline:
            self.latencies.append(self.now - came)
        else:
            self.late += 1


@pytest.mark.parametrize("tokens", [14, 120])
def test_under_ten_times_the_load_goodput_stays_and_accepted_calls_wait_no_longer_than_told(
    tokens: int,
) -> None:
    max_wait_s, seconds = 0.5, 2.0 if tokens == 14 else 8.0
    peak = Simulation(QueueLimit(UNBOUNDED, max_wait_s), tokens).run(1.0, seconds)
    server = Simulation(QueueLimit(UNBOUNDED, max_wait_s), tokens)
    goodput = server.run(10.0, seconds)
    assert goodput >= 0.9 * peak
    assert goodput >= 0.9 * server.capacity
    batch_s = RUN_S + TOKEN_S * BATCH.rows * tokens
    assert max(server.latencies) <= max_wait_s + 3 * batch_s
    assert server.most_rows <= (max_wait_s + 3 * batch_s) * server.capacity
    assert server.refused > 8 * len(server.latencies)


def test_callers_in_a_hurry_are_refused_rather_than_computed_too_late() -> None:
    server = Simulation(QueueLimit(UNBOUNDED, 2.0))
    goodput = server.run(10.0, 2.0, time_left_s=0.2)
    assert goodput >= 0.9 * server.capacity
    assert server.late <= 0.05 * len(server.latencies)


def test_under_half_the_load_nobody_is_refused() -> None:
    server = Simulation(QueueLimit(1024, 0.5))
    server.run(0.5, 2.0, time_left_s=0.2)
    assert (server.refused, server.late) == (0, 0)
    assert max(server.latencies) < 0.05


def test_a_server_with_many_more_callers_than_it_can_answer_goes_on_answering(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two instances computes 100 rows a second; 60 callers without patience call."""
    plain = ServedModel.scores

    def slow(model: ServedModel, rows: Sequence[Any]) -> NDArray[Any]:
        time.sleep(0.01 * len(rows))
        return plain(model, rows)

    running = launch(instances=2, max_wait_s=0.1, max_batch=4)
    running.classify("bank")
    monkeypatch.setattr(ServedModel, "scores", slow)
    answered: list[str] = []
    refused: list[grpc.StatusCode] = []
    end = time.monotonic() + 60

    def enough() -> bool:
        return len(answered) > 20 and len(refused) > 20

    def caller(_number: int) -> None:
        while not enough():
            assert time.monotonic() < end, (len(answered), Counter(refused))
            try:
                answered.append(running.classify("bank").model)
            except grpc.RpcError as error:
                refused.append(error.code())

    with ThreadPoolExecutor(60) as pool:
        list(pool.map(caller, range(60)))
    assert set(refused) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert running.classify("still alive").classifications
    assert running.metric("edgewright_queue_rows") == 0
