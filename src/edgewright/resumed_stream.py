"""A stream that outlives its connections: what was not answered is sent again.

As in ``calls``, what happens when is a generator of steps without I/O; ``stream_calls`` performs
them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import Message

from edgewright.calls import Calls, Pause
from edgewright.errors import OverloadedError, ServiceError
from edgewright.failed_call import dropped, explained

MESSAGES_AHEAD: Final = 8  # sent and not answered
ENTRIES_AT_ONCE: Final = 64  # taken from the caller
SLOW_S: Final = 1.0  # a caller who takes longer has what was sent answered before more is
_WORTH_ANOTHER_TRY: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# What grpc.aio says (INTERNAL) when a write meets a call that is just ending: how it ended is lost,
# and the next try tells.
_END_NOT_SEEN: Final = "Internal error from Core"


class StreamForm(Protocol):
    """What a method's messages are made of, and read as."""

    def chunks(self, entries: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """The caller's entries, newly taken and in order, as one part for each message."""
        ...

    def request(self, chunk: Sequence[Any]) -> Message:
        """The message of one part; InputError where it cannot be made."""
        ...

    def answers(self, response: Any, chunk: Sequence[Any], target: str) -> Sequence[Any]:
        """One answer for each entry of a part; ServiceError where they are not its own."""
        ...


@dataclass(frozen=True)
class Take:
    """Send me the caller's next entries as Taken: ``count``, or those of ``within_s`` seconds."""

    count: int
    within_s: float


@dataclass(frozen=True)
class Taken:
    """Entries of the caller's, in order, and whether they are the last."""

    entries: Sequence[Any]
    exhausted: bool


@dataclass(frozen=True)
class Open:
    """Begin the RPC."""

    timeout_s: float


@dataclass(frozen=True)
class Write:
    """Send a message."""

    request: Message


@dataclass(frozen=True)
class Read:
    """Send me the next response, or None where the server has ended the RPC."""


@dataclass(frozen=True)
class Close:
    """Nothing more is written; end the RPC."""


@dataclass(frozen=True)
class Deliver:
    """Hand these to the caller."""

    answers: Sequence[Any]


Step = Take | Open | Write | Read | Close | Deliver | Pause
StreamSteps = Generator[Step, Any, None]


class ResumedStream:
    """One caller's stream. A connection is given up at half its deadline, and a new one begun, so
    that a stream may last for ever and its replicas take turns. The time that the caller takes, to
    give entries or to look at answers, is not the server's."""

    def __init__(
        self, form: StreamForm, calls: Calls, patience_s: float, clock: Callable[[], float]
    ) -> None:
        """``patience_s`` is how long nothing may be answered, in seconds of ``clock``."""
        self._form = form
        self._calls = calls
        self._patience_s = patience_s
        # A fraction of the deadline, or it could pass before anything that was sent is read.
        self._slow_s = min(SLOW_S, patience_s / 4)
        self._clock = clock
        self._unsent: deque[Sequence[Any]] = deque()
        self._sent: deque[Sequence[Any]] = deque()  # on this connection, not answered
        self._exhausted = False
        self._slow: dict[type[Step], bool] = {}  # which of the caller's steps were, last time
        self._opened: float | None = None
        self._waiting_since: float | None = None
        self._failures = 0  # since something was answered

    def steps(self) -> StreamSteps:
        """Everything, to the end of the caller's entries.

        Raises:
            EdgewrightError: nothing was answered for ``patience_s``, or trying will not help.
        """
        while not self._exhausted or self._unsent or self._sent or self._opened is not None:
            try:
                yield from self._step()
            except grpc.RpcError as failure:
                pause_s = self._pause_after(failure)
                self._forget_connection()
                yield Pause(pause_s)

    def _step(self) -> StreamSteps:
        ahead = 1 if any(self._slow.values()) else MESSAGES_AHEAD
        room = len(self._sent) < ahead and not self._expired()
        if room and self._unsent:
            yield from self._send()
        elif room and not self._exhausted:
            yield from self._take()
        elif self._sent:
            yield from self._receive()
        elif self._opened is not None:
            with suppress(grpc.RpcError):  # it owes nothing: how it ended does not matter
                yield Close()
            self._opened = None

    def _take(self) -> StreamSteps:
        taken = yield from self._by_caller(Take(ENTRIES_AT_ONCE, self._slow_s))
        self._exhausted = taken.exhausted
        self._unsent.extend(self._form.chunks(taken.entries))

    def _by_caller(self, step: Take | Deliver) -> Generator[Step, Any, Any]:
        """What the caller does of it, while no server is waited for."""
        began = self._clock()
        done = yield step
        took_s = self._clock() - began
        if self._waiting_since is not None:
            self._waiting_since += took_s
        self._slow[type(step)] = took_s >= self._slow_s
        return done

    def _send(self) -> StreamSteps:
        if self._opened is None:
            yield Open(self._patience_s)
            self._opened = self._clock()
        request = self._form.request(self._unsent[0])
        self._sent.append(self._unsent.popleft())
        if self._waiting_since is None:
            self._waiting_since = self._clock()
        yield Write(request)

    def _receive(self) -> StreamSteps:
        response = yield Read()
        if response is None:
            raise ServiceError(
                f"{self._calls.target} ended the stream without answering everything; "
                "send them again"
            )
        answers = self._form.answers(response, self._sent[0], self._calls.target)
        self._sent.popleft()
        self._failures = 0
        self._waiting_since = self._clock() if self._sent else None
        yield from self._by_caller(Deliver(answers))

    def _expired(self) -> bool:
        return self._opened is not None and self._clock() - self._opened >= self._patience_s / 2

    def _pause_after(self, failure: Any) -> float:
        """Seconds to wait, or the error where another try would not help or be too late."""
        error = explained(failure, self._calls.target, self._patience_s)
        pause_s = self._calls.backoff_s(self._failures)
        self._failures += 1
        if isinstance(error, OverloadedError):
            pause_s += error.retry_after_s
        elif not _is_worth_another_try(failure):
            raise error from failure
        waited_s = 0.0 if self._waiting_since is None else self._clock() - self._waiting_since
        if waited_s + pause_s >= self._patience_s:
            raise error from failure
        return pause_s

    def _forget_connection(self) -> None:
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        self._opened = None


def _is_worth_another_try(failure: Any) -> bool:
    ended_so = failure.code() in _WORTH_ANOTHER_TRY or failure.details() == _END_NOT_SEEN
    return ended_so or dropped(failure)
