"""Work that callers must not feel: a piece at a time, on threads that give way to theirs.

Hashing and the goldens of a new version would keep every core busy while calls wait for theirs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import Final, TypeVar

from edgewright.errors import NotReadyError
from edgewright.serve.stop_signals import held_back

# Above the server's own: a tenth of what a thread that answers gets where both want one core. Not
# 19, or SCHED_IDLE: where others keep every core busy such a thread gets next to nothing, and what
# it holds it holds for long: the interpreter, a lock of the allocator.
NICE: Final = 10
_NICEST: Final = 19  # that Linux knows
_KILLED_S: Final = 5.0  # until a process is gone, unless a disk holds it

T = TypeVar("T")


class Background:
    """A few threads, what waits for them, and processes beside them.

    ``close`` gives up what has not begun, and kills the processes.
    """

    def __init__(self, threads: int) -> None:
        """``threads``: for each that may call ``run`` at once, lest one that hangs hold up all."""
        self._pool = ThreadPoolExecutor(threads, "background", initializer=_give_way)
        self._processes: set[Popen[bytes]] = set()
        self._closed = threading.Event()
        self.no_core_idle_until = 0.0  # by ``time.monotonic``; told by whoever has waited in vain

    @property
    def closed(self) -> bool:
        """Whether nothing more begins."""
        return self._closed.is_set()

    def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, or raises; from any thread, which waits meanwhile.

        Threads that ``work`` starts give way for as long as they live, so it must leave none.

        Raises:
            NotReadyError: this was closed before ``work`` began.
        """
        try:
            piece = self._pool.submit(work)
        except RuntimeError as error:  # so says a pool that is closed
            raise _given_up() from error
        try:
            return piece.result()
        except CancelledError as error:
            raise _given_up() from error

    def start(self, command: Sequence[str], descriptor: int) -> Popen[bytes]:
        """A process that has stderr and the file ``descriptor`` of this one.

        Signals that stop servers pass it by: who started it ends it. That it gives way is left to
        it: until it has begun, whoever starts it keeps the interpreter from everybody.

        Raises:
            OSError: it cannot be started.
            NotReadyError: this is closed.
        """
        if self.closed:
            raise _given_up()
        with held_back():
            process = Popen(command, stdin=DEVNULL, stdout=DEVNULL, pass_fds=[descriptor])
        self._processes.add(process)
        if self._closed.is_set():  # meanwhile
            process.kill()
        return process

    def end(self, process: Popen[bytes]) -> int:
        """Kill a process that was started here, unless it has ended; its ``returncode``."""
        process.kill()
        with contextlib.suppress(TimeoutExpired):
            process.wait(_KILLED_S)
        self._processes.discard(process)
        return process.returncode or 0

    def close(self) -> None:
        """Begin nothing more; waits for nothing."""
        self._closed.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in list(self._processes):
            process.kill()


def _given_up() -> NotReadyError:
    return NotReadyError("given up, for the server stops")


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        with contextlib.suppress(OSError):  # forbidden here: then it goes without
            thread = threading.get_native_id()
            nice = os.getpriority(os.PRIO_PROCESS, thread) + NICE
            os.setpriority(os.PRIO_PROCESS, thread, min(nice, _NICEST))
