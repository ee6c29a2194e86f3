"""How long a server may take to stop: what hangs keeps no process past its grace."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

from edgewright.errors import DeadlineError
from edgewright.serve.config import ServeConfig
from edgewright.serve.logs import LogThread

LAST_S: Final = 2.0  # after --grace, to close the store, the threads and the log
LAST_WORDS_S: Final = 5.0
# Of a process that was ended before every call was answered.
CUT_OFF: Final = DeadlineError.exit_code
_IDLE: Final = "_worker"  # where a thread of concurrent.futures waits for work

log = logging.getLogger(__name__)


class Grace:
    """Ends the process some time after ``begin``, whatever its loop or its threads do."""

    def __init__(
        self, config: ServeConfig, log_thread: LogThread, leave: Callable[[int], object] = os._exit
    ) -> None:
        self._told = f"--grace ({config.grace_s:g} s)"
        seconds = config.drain_delay_s + config.grace_s + LAST_S
        self._seconds = min(seconds, threading.TIMEOUT_MAX)
        self._log_thread = log_thread
        self._leave = leave
        self._over = threading.Event()

    def begin(self) -> None:
        """Let the time run; nothing stops it but the end of the process."""
        # Both now: an interpreter that shuts down, as it may by then, starts no further thread.
        last_words = threading.Thread(target=self._tell, name="grace", daemon=True)
        last_words.start()
        threading.Thread(target=self._end, args=(last_words,), name="grace", daemon=True).start()

    def _end(self, last_words: threading.Thread) -> None:
        threading.Event().wait(self._seconds)
        self._over.set()
        last_words.join(LAST_WORDS_S)  # they may have to go where nobody reads
        self._leave(CUT_OFF)

    def _tell(self) -> None:
        self._over.wait()
        log.error(
            "did not stop within %s: still at work is %s; the process is ended",
            self._told,
            ", ".join(_at_work()),
        )
        self._log_thread.close()


def _at_work() -> Iterator[str]:
    """Every thread that is not idle, and where it is."""
    frames = sys._current_frames()
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is None or thread.name in ("grace", "log") or frame.f_code.co_name == _IDLE:
            continue
        place = f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
        yield f"{thread.name} ({frame.f_code.co_name}, {place})"
