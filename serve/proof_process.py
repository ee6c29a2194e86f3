"""Work that callers must not feel at all: in a process of its own, on cores that nobody wants.

A thread that gives way still holds what others wait for: the interpreter, a lock of the allocator.
A process holds none of it, so that it may have the lowest priority there is; and a model that
crashes its runtime, or for which there is no memory, takes down nobody who answers.
"""

from __future__ import annotations

import logging
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from subprocess import TimeoutExpired
from types import TracebackType
from typing import Any, Final, TypeVar

from edgewright.errors import EdgewrightError, IntegrityError, NotReadyError
from edgewright.serve import proof_child
from edgewright.serve.background import NICE, Background
from edgewright.serve.core_time import CoreTime

# That a piece may take on cores that nobody wants; then it begins anew with a share of them, and
# sooner where it is seen to starve: where others keep every core busy it would never end. Nobody
# but root gets a priority back.
IDLE_S: Final = 30.0
LOOK_S: Final = 2.0  # between two looks at whether it starves
# Of a core, below which what wants one starves. By design it works half of the time.
_STARVES: Final = 0.05
_REMEMBERED_S: Final = 60.0  # that no core was idle: pieces have a share from the start
LIMIT_S: Final = 600.0  # for a piece: what takes longer hangs, as a rule
ANSWER_S: Final = 30.0  # that more of an answer, or room for more of a piece, may be waited for
_LAST_S: Final = 5.0  # from the end of its pipe to its own

T = TypeVar("T")
log = logging.getLogger(__name__)


class ProofProcess:
    """A process that is started when it is needed; use it as a context manager, from one thread."""

    def __init__(self, background: Background) -> None:
        """``background`` kills it when it is closed."""
        self._background = background
        self._idle = time.monotonic() >= background.no_core_idle_until
        self._child: _Child | None = None

    def run(self, work: Callable[[], T]) -> T:
        """What ``work``, which is pickled, returns or raises.

        Where no process can be started, a thread of the background does it.

        Raises:
            IntegrityError: it crashes a process.
            NotReadyError: it does not end, its process was killed, or the background is closed.
        """
        try:
            well, answer = self._asked(work)
        except _NoProcessError as error:
            log.warning("no process can be had for what proves a model (%s); a thread does", error)
            return self._background.run(work)
        if not well:
            raise answer
        return answer  # type: ignore[no-any-return]  # it was pickled

    def __enter__(self) -> ProofProcess:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _asked(self, work: Callable[[], object]) -> tuple[bool, Any]:
        while True:
            self._child = self._child or _Child(self._background, idle=self._idle)
            answer = None
            try:
                answer = self._child.answer(work, IDLE_S if self._idle else LIMIT_S)
            finally:
                if answer is None:
                    self._end()
            if answer is not None:
                return answer
            if not self._idle:
                raise NotReadyError(
                    f"what proves it did not end within {LIMIT_S:g} s, or stopped for "
                    f"{ANSWER_S:g} s in the middle of its answer"
                )
            self._idle = False
            self._background.no_core_idle_until = time.monotonic() + _REMEMBERED_S

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None


class _NoProcessError(Exception):
    """There can be no process here; says why."""


class _Child:
    """The process, as whoever started it has it."""

    def __init__(self, background: Background, *, idle: bool) -> None:
        self._background = background
        self._idle = idle
        self._pipe, theirs = _pipe()
        descriptor = theirs.fileno()
        command = [sys.executable, "-P", proof_child.__file__, str(descriptor), str(NICE)]
        try:
            self._process = background.start(command + [proof_child.IDLE] * idle, descriptor)
        except OSError as error:
            self._pipe.close()
            raise _NoProcessError(str(error)) from error
        finally:
            theirs.close()

    def answer(self, work: Callable[[], object], limit_s: float) -> tuple[bool, Any] | None:
        """Whether it went well, and what came of it; None where it starves or is not in time."""
        try:
            self._pipe.send(work)
            return self._pipe.recv() if self._arrives(limit_s) else None
        except BlockingIOError:
            return None
        except (EOFError, OSError):
            with suppress(TimeoutExpired):  # of itself, lest it be killed as it ends
                self._process.wait(_LAST_S)
            code = self.end()
        if self._background.closed:
            raise NotReadyError("given up, for the server stops")
        raise _death(code)

    def _arrives(self, limit_s: float) -> bool:
        """Whether an answer comes in time; as soon as it starves for want of idle cores, none."""
        end = time.monotonic() + limit_s
        while (left_s := end - time.monotonic()) > LOOK_S and self._idle:
            began, before = time.monotonic(), CoreTime.of(self._process.pid)
            if self._pipe.poll(LOOK_S):
                return True
            after = CoreTime.of(self._process.pid)
            if before and after and after.starves(before, time.monotonic() - began, _STARVES):
                return False
        return self._pipe.poll(max(0.0, left_s))

    def end(self) -> int:
        """Kill it unless it has ended; its exit code, or minus the number of the signal."""
        self._pipe.close()
        return self._background.end(self._process)


def _pipe() -> tuple[Connection, socket.socket]:
    """Our end, which waits in the middle of nothing for longer than ``ANSWER_S``, and the other.

    Where it would, it raises BlockingIOError (socket(7), SO_RCVTIMEO).
    """
    ours, theirs = socket.socketpair()
    limit = struct.pack("ll", int(ANSWER_S), int(ANSWER_S % 1 * 1e6))
    for way in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        ours.setsockopt(socket.SOL_SOCKET, way, limit)
    return Connection(ours.detach()), theirs


def _death(code: int) -> EdgewrightError | _NoProcessError:
    """What a process has died of that gave no answer."""
    if code == -signal.SIGKILL:
        return NotReadyError(
            "what proves it was killed, as the system does when memory runs out; it needs as much "
            "again as the version that answers"
        )
    if code >= 0 or code == -signal.SIGSYS:  # it could not even begin, or is not allowed to
        return _NoProcessError(f"it ended with exit code {code}")
    return IntegrityError(
        f"what proves it crashed ({signal.Signals(-code).name}): this host or its runtime does not "
        "compute what was certified; optimize again here, or serve on another host"
    )
