"""Rows of several callers computed together, on threads beside the event loop.

A thread takes whatever has arrived, up to the limit of a batch, and computes it; what arrives
meanwhile is the next batch. A lone call never waits for company, and under load batches grow by
themselves. What a call is let in for is decided by ``admission``, what makes a batch by ``line``,
and what happens to it by ``compute``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from edgewright.errors import EdgewrightError, GpuLostError
from edgewright.serve.admission import Queue, QueueLimit
from edgewright.serve.call import Answer, BatchModel, Call
from edgewright.serve.call_record import current_call
from edgewright.serve.compute import BatchObserver, Compute, Computed
from edgewright.serve.compute_threads import ComputeThreads
from edgewright.serve.line import BatchLimit, Line
from edgewright.serve.pace import Stage
from edgewright.serve.shutting_down import shutting_down

Prepare = Callable[[Call], Awaitable[Sequence[Any]]]


class Batcher:
    """The queue and the threads that drain it. It belongs to the event loop it was made on."""

    def __init__(
        self,
        *,
        batch: BatchLimit,
        limit: QueueLimit,
        observer: BatchObserver,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = Queue(limit)
        self._batch = batch
        self._observer = observer
        self._clock = clock
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self.gpu_lost: asyncio.Future[GpuLostError] = self._loop.create_future()
        compute = Compute(batch.tokens, observer, clock, self._tell)
        self._threads = ComputeThreads(Line(batch), compute, clock)
        self._threads.grow_to(1)

    @property
    def alive(self) -> bool:
        """Whether the compute threads run, and still have what they run on."""
        return self._threads.alive and not self.gpu_lost.done()

    def grow_to(self, threads: int) -> None:
        """Let at least so many threads compute; as ``ComputeThreads.grow_to``, from any thread."""
        self._threads.grow_to(threads)

    def cutting_in(self) -> AbstractContextManager[None]:
        """While models are loaded beside calls; as ``ComputeThreads.cutting_in``."""
        return self._threads.cutting_in()

    async def classify(
        self,
        model: BatchModel,
        inputs: Sequence[Any],
        time_left_s: float | None,
        *,
        prepare: Prepare | None = None,
        extras: Sequence[str] = (),
    ) -> list[Answer]:
        """Answers in the order of ``inputs``; ``time_left_s`` None means no deadline.

        ``extras`` names outputs that are wanted beside the scores.
        ``prepare`` makes of an admitted call's inputs what the model encodes, off the event loop.
        They count as waiting meanwhile.

        Raises:
            OverloadedError: the queue is full, or the answer would come too late.
            DeadlineError: the time was over before the work was done.
            NotReadyError: the batcher is closed.
        """
        self._refuse_once_closed()
        now = self._clock()
        deadline = float("inf") if time_left_s is None else now + time_left_s
        call = Call(model, inputs, deadline, self._loop.create_future(), now, extras)
        if (record := current_call.get()) is not None:
            record.work = call
            call.caller = record.known_as
        call.large = self._batch.exceeded_by(call)
        self.queue.enter(call, time_left_s)
        try:
            if prepare is not None:
                call.inputs = await prepare(call)
                self._refuse_once_closed()
            self._threads.put(call)
            return await call.future
        finally:
            self.queue.leave(call)
            if call.unanswered:  # its caller has left, or a row of it has failed
                call.future.cancel()
                self._threads.discard(call)

    async def close(self) -> None:
        """Compute what waits, then end the threads."""
        self._closing = True
        self._threads.close()
        await asyncio.to_thread(self._threads.join)

    def _refuse_once_closed(self) -> None:
        if self._closing:
            raise shutting_down()

    def _tell(self, computed: Computed) -> None:
        """Hand over, from a compute thread: one wake-up of the event loop for all of it."""
        self._loop.call_soon_threadsafe(self._settle, computed)

    def _settle(self, computed: Computed) -> None:
        cost = 0
        for row, outcome in zip(computed.rows, computed.outcomes, strict=True):
            cost += row.cost
            row.call.run = computed.run
            if isinstance(outcome, GpuLostError) and not self.gpu_lost.done():
                self.gpu_lost.set_result(outcome)
            if row.call.future.done():
                continue  # its caller has left, or has been told of another row's error
            if isinstance(outcome, EdgewrightError):
                row.call.fail(outcome)
            else:
                self.queue.computed(row.call, row.cost)
                row.call.settle(row.place, outcome)
        if computed.seconds:
            threads = min(len(self._threads), computed.model.instances)
            self.queue.learn(computed.model, Stage.COMPUTE, cost, computed.seconds, threads)
        if computed.run is not None:
            self._observer.run_told(computed, self._clock() - computed.run.ended)
