"""Threads that drain the line: whichever is idle takes what waits, without added delay."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from edgewright.errors import NotReadyError
from edgewright.serve.call import Call
from edgewright.serve.line import Batch, EncodedRun, Line

# Lets other threads take runs of a batch.
HandOver = Callable[[Batch, Sequence[EncodedRun]], None]
Compute = Callable[[Batch | EncodedRun, HandOver], None]


class ComputeThreads:
    """A line and the threads that take batches from it. Its methods never wait for compute."""

    def __init__(self, line: Line, compute: Compute, clock: Callable[[], float]) -> None:
        """``compute`` is called on the threads and must not raise; ``clock`` is the deadlines'."""
        self._line = line
        self._compute = compute
        self._clock = clock
        self._changed = threading.Condition()
        self._idle = 0
        self._closing = False
        self._threads: list[threading.Thread] = []
        self._growing = threading.Lock()
        self._policy = threading.Lock()  # held while the threads are told how to be scheduled
        self._cutting_in = 0

    def __len__(self) -> int:
        return len(self._threads)

    @property
    def alive(self) -> bool:
        """Whether every thread runs."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def grow_to(self, count: int) -> None:
        """Start threads until there are ``count``; never fewer than there were. From any thread.

        Raises:
            NotReadyError: the system gives no more threads; those that there were go on.
        """
        with self._growing:
            begin: Future[bool] = Future()  # one that cannot be started takes back the others
            more: list[threading.Thread] = []
            try:
                while (there := len(self._threads) + len(more)) < count:
                    more.append(self._started(there, begin))
            except (RuntimeError, MemoryError) as error:
                begin.set_result(False)
                raise NotReadyError(
                    f"after {there} of {count} threads that compute the system gives no more "
                    f"({error or 'out of memory'}); give fewer --instances, or raise the limit of "
                    "processes or of memory"
                ) from error
            self._threads = self._threads + more
            begin.set_result(True)

    def _started(self, number: int, begin: Future[bool]) -> threading.Thread:
        def work() -> None:
            if begin.result():
                self._work()

        thread = threading.Thread(target=work, name=f"compute-{number}", daemon=True)
        thread.start()
        return thread

    @contextlib.contextmanager
    def cutting_in(self) -> Iterator[None]:
        """While others work beside them on threads that give way; from any thread.

        The kernel lets a thread that never cuts in wait for whoever has the core, however nice, to
        the end of his slice of time: some milliseconds, which a whole call takes.
        """
        self._cut_in(1)
        try:
            yield
        finally:
            self._cut_in(-1)

    def put(self, call: Call) -> None:
        """Let ``call`` wait for its turn."""
        with self._changed:
            self._line.add(call)
            self._changed.notify()

    def discard(self, call: Call) -> None:
        """Forget what waits of ``call``."""
        with self._changed:
            self._line.discard(call)

    def close(self) -> None:
        """Let the threads end once the line is empty; ``join`` waits for that."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until every thread has ended."""
        for thread in self._threads:
            thread.join()

    def _cut_in(self, more: int) -> None:
        with self._policy:
            self._cutting_in += more
            for thread in self._threads:
                self._schedule(thread.native_id)

    def _schedule(self, thread: int | None) -> None:
        """Have it cut in on nobody, but while ``cutting_in``; its share of the cores is the same.

        Else a thread that wakes for one call takes the core from the event loop, which would have
        brought the next calls of its batch.
        """
        if thread is not None and hasattr(os, "SCHED_BATCH"):  # Linux
            policy = os.SCHED_OTHER if self._cutting_in else os.SCHED_BATCH
            with contextlib.suppress(OSError):  # forbidden here, or it has ended
                os.sched_setscheduler(thread, policy, os.sched_param(0))

    def _work(self) -> None:
        with self._policy:
            self._schedule(threading.get_native_id())
        while (taken := self._take()) is not None:
            self._compute(taken, self._hand_over)
            with self._changed:
                self._line.release(taken)
                if len(self._line):  # of a model, perhaps, that could not run until now
                    self._changed.notify()
            del taken  # or a model that has left would stay until the next call

    def _hand_over(self, batch: Batch, runs: Sequence[EncodedRun]) -> None:
        with self._changed:
            self._line.hand_over(batch, runs)
            self._changed.notify(len(runs))

    def _take(self) -> Batch | EncodedRun | None:
        """What comes next, as soon as there is anything; None once closed and empty."""
        with self._changed:
            self._idle += 1
            try:
                while True:
                    taken = self._line.take(self._clock(), self._idle)
                    if taken is not None:
                        if self._idle > 1 and len(self._line):
                            self._changed.notify()  # the next idle thread takes its share
                        return taken
                    if self._closing and not len(self._line):
                        self._changed.notify_all()
                        return None
                    self._changed.wait()
            finally:
                self._idle -= 1
