"""Work that callers must not feel: a piece at a time, on threads that give way to theirs.

Hashing and the goldens of a new version would keep every core busy while calls wait for theirs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Final, TypeVar

from edgewright.errors import NotReadyError

# Above the server's own: a tenth of what a thread that answers gets where both want one core. Not
# 19, or SCHED_IDLE: where others keep every core busy such a thread gets next to nothing, and what
# it holds it holds for long: the interpreter, a lock of the allocator.
NICE: Final = 10
_NICEST: Final = 19  # that Linux knows

T = TypeVar("T")


class Background:
    """A few threads, and what waits for them. ``close`` gives up what has not begun."""

    def __init__(self, threads: int) -> None:
        """``threads``: for each that may call ``run`` at once, lest one that hangs hold up all."""
        self._pool = ThreadPoolExecutor(threads, "background", initializer=_give_way)

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

    def close(self) -> None:
        """Begin nothing more; waits for nothing."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _given_up() -> NotReadyError:
    return NotReadyError("given up, for the server stops")


def _give_way() -> None:
    if sys.platform == "linux":  # elsewhere a thread has no priority of its own
        with contextlib.suppress(OSError):  # forbidden here: then it goes without
            thread = threading.get_native_id()
            nice = os.getpriority(os.PRIO_PROCESS, thread) + NICE
            os.setpriority(os.PRIO_PROCESS, thread, min(nice, _NICEST))
