"""Rows of several callers computed together: one thread drains what waits, without added delay.

The thread takes whatever has arrived, up to ``max_rows``, and computes it; what arrives meanwhile
is the next batch. A lone call never waits for company, and under load batches grow by themselves.
A call with more rows than fit goes to the back of the line with its rest, so that it cannot hold up
small ones. Work whose caller has left, or whose deadline has passed, is dropped before it is
computed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewright.errors import DeadlineError, EdgewrightError, NotReadyError
from edgewright.preprocess import Row as EncodedRow
from edgewright.serve.admission import Queue
from edgewright.serve.runs import runs_of_similar_length

_SMOOTHING = 0.1  # weight of the newest batch in seconds_per_row


class BatchModel(Protocol):
    """What the compute thread needs of a model. It is called from that thread alone."""

    @property
    def name(self) -> str:
        """For messages and metrics."""
        ...

    @property
    def row_by_row(self) -> bool:
        """Whether its answers depend on a row's neighbours, so that it must have none."""
        ...

    def encode(self, inputs: Sequence[Any]) -> Sequence[EncodedRow]:
        """One row for each text or decoded image."""
        ...

    def scores(self, rows: Sequence[EncodedRow]) -> NDArray[np.float32]:
        """Softmax scores of shape (rows, classes), from one run."""
        ...


class Answer(NamedTuple):
    """One row's: class indices and their scores, best first, and whether the text was cut."""

    classes: list[int]
    scores: list[float]
    truncated: bool


class BatchObserver(Protocol):
    """Is told of every run, on the compute thread."""

    def run_done(self, model: str, rows: int, seconds: float) -> None:
        """``rows`` were computed together."""
        ...

    def not_finite(self, model: str) -> None:
        """A row had scores that are no numbers."""
        ...


class Call:
    """One caller's texts or images on their way through compute."""

    def __init__(
        self,
        model: BatchModel,
        inputs: Sequence[Any],
        deadline: float,
        future: asyncio.Future[list[Answer]],
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.deadline = deadline  # in seconds, on the batcher's clock
        self.future = future  # of the event loop; other threads only read whether it is done
        self.taken = 0  # rows handed to compute
        self.answers: dict[int, Answer] = {}
        self.outcome: list[Answer] | EdgewrightError | None = None

    def take(self, count: int) -> list[Row]:
        """The next ``count`` rows, or as many as are left."""
        end = min(self.taken + count, len(self.inputs))
        rows = [Row(self, place) for place in range(self.taken, end)]
        self.taken = end
        return rows


class Row(NamedTuple):
    """One text or image of a call."""

    call: Call
    place: int  # among the call's inputs

    @property
    def input(self) -> Any:
        """The text itself, or the image as it was decoded."""
        return self.call.inputs[self.place]


class Batcher:
    """The queue and its compute thread. Everything public belongs to the event loop's thread."""

    def __init__(
        self,
        *,
        max_rows: int,
        queue_rows: int,
        observer: BatchObserver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds_per_row = 0.001  # smoothed; a guess until the first run has told better
        self.queue = Queue(queue_rows, lambda: self.seconds_per_row)
        self._max_rows = max_rows
        self._observer = observer
        self._clock = clock
        self._closing = False
        self._arrivals: SimpleQueue[Call | None] = SimpleQueue()
        self._pending: deque[Call] = deque()  # this and what follows: the compute thread's
        self._ended: list[Call] = []
        self._last_seen = False  # nothing arrives any more
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the compute thread runs."""
        return self._thread.is_alive()

    async def classify(
        self, model: BatchModel, inputs: Sequence[Any], time_left_s: float | None
    ) -> list[Answer]:
        """Answers in the order of ``inputs``; ``time_left_s`` None means no deadline.

        Raises:
            OverloadedError: the queue is full.
            DeadlineError: the time was over before the work was done.
            NotReadyError: the batcher is closed.
        """
        if self._closing:
            raise NotReadyError("the server is shutting down; call another replica")
        self.queue.enter(len(inputs))
        deadline = float("inf") if time_left_s is None else self._clock() + time_left_s
        call = Call(model, inputs, deadline, self._loop.create_future())
        self._arrivals.put(call)
        return await call.future

    async def close(self) -> None:
        """Compute what waits, then end the thread."""
        if not self._closing:
            self._closing = True
            self._arrivals.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while self._collect():
            if rows := self._next_rows():
                self._compute(rows[0].call.model, rows)
            self._flush()

    def _collect(self) -> bool:
        """Wait until there is work, and take all there is; False once closed and empty."""
        if not self._pending and not self._last_seen:
            self._accept(self._arrivals.get())
        while not self._arrivals.empty():
            self._accept(self._arrivals.get())
        return bool(self._pending) or not self._last_seen

    def _accept(self, arrival: Call | None) -> None:
        if arrival is None:
            self._last_seen = True
        else:
            self._pending.append(arrival)

    def _next_rows(self) -> list[Row]:
        """Up to ``max_rows`` rows of one model, first come first served."""
        rows: list[Row] = []
        others, unfinished = [], []
        while self._pending and len(rows) < self._max_rows:
            call = self._pending.popleft()
            if not self._wanted(call):
                continue
            if rows and call.model is not rows[0].call.model:
                others.append(call)
                continue
            rows += call.take(self._max_rows - len(rows))
            if call.taken < len(call.inputs):
                unfinished.append(call)
        self._pending.extendleft(reversed(others))
        self._pending.extend(unfinished)
        return rows

    def _compute(self, model: BatchModel, rows: Sequence[Row]) -> None:
        try:
            encoded = model.encode([row.input for row in rows])
        except BaseException as error:  # an edge: the thread outlives even a panic in Rust
            self._compute_apart(model, rows, error)
            return
        for run in runs_of_similar_length([len(each) for each in encoded], model.row_by_row):
            live = [index for index in run if self._wanted(rows[index].call)]
            if live:
                self._run(model, [rows[i] for i in live], [encoded[i] for i in live])
            self._flush()

    def _run(self, model: BatchModel, rows: Sequence[Row], encoded: Sequence[EncodedRow]) -> None:
        started = self._clock()
        try:
            scores = model.scores(encoded)
        except BaseException as error:  # an edge, as above
            self._compute_apart(model, rows, error)
            return
        seconds = self._clock() - started
        self.seconds_per_row += _SMOOTHING * (seconds / len(rows) - self.seconds_per_row)
        self._observer.run_done(model.name, len(rows), seconds)
        for index in np.flatnonzero(~np.isfinite(scores).all(axis=1)).tolist():
            self._observer.not_finite(model.name)
            place, size = rows[index].place, len(encoded[index])
            what = f"text {place} ({size} tokens)" if _is_text(rows[index]) else f"image {place}"
            fault = EdgewrightError(f"{model.name} gave no finite scores for {what}")
            self._fail([rows[index]], fault)
        for row, classes, best, one in zip(rows, *best_first(scores), encoded, strict=True):
            self._answer(row, Answer(classes, best, one.truncated))

    def _compute_apart(self, model: BatchModel, rows: Sequence[Row], error: BaseException) -> None:
        """What one caller's input did wrong must not become its neighbours' error."""
        by_call: dict[Call, list[Row]] = {}
        for row in rows:
            by_call.setdefault(row.call, []).append(row)
        if len(by_call) == 1:
            self._fail(rows, error)
            return
        for share in by_call.values():
            self._compute(model, share)

    def _answer(self, row: Row, answer: Answer) -> None:
        call = row.call
        call.answers[row.place] = answer
        if len(call.answers) == len(call.inputs):
            self._end(call, [call.answers[place] for place in range(len(call.inputs))])

    def _fail(self, rows: Sequence[Row], error: BaseException) -> None:
        if isinstance(error, EdgewrightError):
            told = error
        else:
            told = EdgewrightError(f"{rows[0].call.model.name} failed: {error!r}")
            told.__cause__ = error
        for row in rows:
            self._end(row.call, told)

    def _wanted(self, call: Call) -> bool:
        """Whether anybody still waits for ``call``; it is ended here when nobody does."""
        if call.future.done() or self._clock() >= call.deadline:
            self._end(call, DeadlineError("the deadline passed before the inputs were computed"))
        return call.outcome is None

    def _end(self, call: Call, outcome: list[Answer] | EdgewrightError) -> None:
        if call.outcome is None:
            call.outcome = outcome
            self._ended.append(call)

    def _flush(self) -> None:
        """Hand over what has ended: one wake-up of the event loop, however many calls."""
        if self._ended:
            ended, self._ended = self._ended, []
            self._loop.call_soon_threadsafe(self._settle, ended)

    def _settle(self, ended: Sequence[Call]) -> None:
        for call in ended:
            self.queue.leave(len(call.inputs))
            if call.future.done():
                continue  # its caller has left
            if isinstance(call.outcome, EdgewrightError):
                call.future.set_exception(call.outcome)
            elif call.outcome is not None:
                call.future.set_result(call.outcome)


def _is_text(row: Row) -> bool:
    return isinstance(row.input, str)


def best_first(scores: NDArray[np.float32]) -> tuple[list[list[int]], list[list[float]]]:
    """Class indices and their scores by row, from scores of shape (rows, classes).

    Of equal scores the class with the lower index comes first.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    return order.tolist(), np.take_along_axis(scores, order, axis=1).tolist()
