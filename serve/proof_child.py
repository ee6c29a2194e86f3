"""The process that ``proof_process`` starts: it does what it is sent, and ends with who sent it.

Run by its path, so that nothing of the package is imported before it gives way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

IDLE: Final = "idle"
# Where memory runs out the system ends this process, not the larger one that answers calls.
_OOM_SCORE: Final = ("/proc/self/oom_score_adj", "1000")
_WORK_S: Final = 0.005  # of a core, between two rests


def main(descriptor: int, nicer: int, *, idle: bool) -> None:
    """Do what comes through the pipe at ``descriptor``, piece by piece, until its other end closes.

    This process, and what it starts, is ``nicer`` than it was; with ``idle`` it gets the cores that
    nobody else wants, and leaves them half of the time.
    """
    _give_way(nicer, idle=idle)
    if idle:
        _rest_as_long_as_it_works()
    import threading  # these imports are work as well
    from multiprocessing.connection import Connection

    pipe = Connection(descriptor)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # its other end is closed
        while True:
            pipe.send(_outcome(pipe.recv()))


def _give_way(nicer: int, *, idle: bool) -> None:
    """As far as the system has it and allows it, each by itself."""
    with contextlib.suppress(OSError):
        os.nice(nicer)
    with contextlib.suppress(OSError):
        if idle and hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError), open(_OOM_SCORE[0], "w") as file:
        file.write(_OOM_SCORE[1])


def _rest_as_long_as_it_works() -> None:
    """For whoever computes beside it is slower: cores share caches, and hyperthreads a core."""
    rested_at = time.process_time()

    def rest(*_: object) -> None:
        nonlocal rested_at
        worked_s, rested_at = time.process_time() - rested_at, time.process_time()
        time.sleep(max(0.0, worked_s))  # the signal may have come again before the difference

    signal.signal(signal.SIGPROF, rest)
    signal.siginterrupt(signal.SIGPROF, False)
    signal.setitimer(signal.ITIMER_PROF, _WORK_S, _WORK_S)


def _outcome(work: Callable[[], object]) -> tuple[bool, object]:
    """Whether it went well, and what it gave; else the error, which may be anything's."""
    try:
        return True, work()
    except Exception as error:  # an edge: the other process raises it
        import traceback

        error.add_note(f"in the process that proves:\n{traceback.format_exc()}")
        return False, error


def _end_with(pipe: Connection) -> None:
    """End this process, whatever it is at, as soon as the other end of the pipe is closed."""
    import select

    closed = select.poll()
    closed.register(pipe, 0)  # its end alone, for what arrives is another's
    closed.poll()
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), idle=sys.argv[3:] == [IDLE])
