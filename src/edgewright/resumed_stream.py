"""A stream that outlives its connections: what was not answered is sent again.

As in ``calls``, what happens when is a generator of steps without I/O; ``StreamCall`` performs
them on a thread, ``AsyncStreamCall`` on an event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import Message

from edgewright.calls import Calls, Pause
from edgewright.errors import OverloadedError, ServiceError
from edgewright.failed_call import explained

MESSAGES_AHEAD: Final = 8  # sent and not answered
ENTRIES_AT_ONCE: Final = 64  # taken from the caller
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
    """Send me the next entries of the caller's, ``count`` unless there are no more."""

    count: int


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
    that a stream may last for ever and its replicas take turns."""

    def __init__(
        self, form: StreamForm, calls: Calls, patience_s: float, clock: Callable[[], float]
    ) -> None:
        """``patience_s`` is how long nothing may be answered, in seconds of ``clock``."""
        self._form = form
        self._calls = calls
        self._patience_s = patience_s
        self._clock = clock
        self._unsent: deque[Sequence[Any]] = deque()
        self._sent: deque[Sequence[Any]] = deque()  # on this connection, not answered
        self._exhausted = False
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
        room = len(self._sent) < MESSAGES_AHEAD and not self._expired()
        if room and self._unsent:
            yield from self._send()
        elif room and not self._exhausted:
            entries = yield Take(ENTRIES_AT_ONCE)
            self._exhausted = len(entries) < ENTRIES_AT_ONCE
            self._unsent.extend(self._form.chunks(entries))
        elif self._sent:
            yield from self._receive()
        elif self._opened is not None:
            yield Close()
            self._opened = None

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
        yield Deliver(answers)

    def _expired(self) -> bool:
        return self._opened is not None and self._clock() - self._opened >= self._patience_s / 2

    def _pause_after(self, failure: Any) -> float:
        """Seconds to wait, or the error where another try would not help or be too late."""
        error = explained(failure, self._calls.target, self._patience_s)
        pause_s = self._calls.backoff_s(self._failures)
        self._failures += 1
        if isinstance(error, OverloadedError):
            pause_s += error.retry_after_s
        elif failure.code() not in _WORTH_ANOTHER_TRY and failure.details() != _END_NOT_SEEN:
            raise error from failure
        waited_s = 0.0 if self._waiting_since is None else self._clock() - self._waiting_since
        if waited_s + pause_s >= self._patience_s:
            raise error from failure
        return pause_s

    def _forget_connection(self) -> None:
        self._unsent.extendleft(reversed(self._sent))
        self._sent.clear()
        self._opened = None


class StreamCall:
    """Performs the steps on the thread that takes the answers."""

    def __init__(self, method: Any, entries: Iterator[Any], sleep: Callable[[float], None]) -> None:
        self._method = method
        self._entries = entries
        self._sleep = sleep
        self._requests: SimpleQueue[Message | None] = SimpleQueue()
        self._call: Any = None

    def answers(self, steps: StreamSteps) -> Iterator[Any]:
        """One for each entry, in their order."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._perform(step)
                except grpc.RpcError as failure:
                    step = steps.throw(failure)
                    continue
                if isinstance(step, Deliver):
                    yield from step.answers
                step = steps.send(answer)
        except StopIteration:
            return
        finally:
            self._end()

    def _perform(self, step: Step) -> Any:
        match step:
            case Take(count):
                return list(islice(self._entries, count))
            case Pause(seconds):
                return self._sleep(seconds)
            case Open(timeout_s):
                self._end()
                self._requests = SimpleQueue()
                self._call = self._method(iter(self._requests.get, None), timeout=timeout_s)
            case Write(request):
                self._requests.put(request)
            case Read():
                return next(self._call, None)
            case Close():
                self._requests.put(None)
                next(self._call, None)
        return None

    def _end(self) -> None:
        if self._call is not None:
            self._requests.put(None)  # frees the thread that gRPC reads them with
            self._call.cancel()
            self._call = None


class AsyncStreamCall:
    """Performs the steps on the event loop; ``method`` gives the RPC, once there is a loop."""

    def __init__(
        self,
        method: Callable[[], Any],
        entries: Iterable[Any] | AsyncIterable[Any],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._method = method
        self._entries = entries if isinstance(entries, AsyncIterable) else _async(entries)
        self._sleep = sleep
        self._call: Any = None

    async def answers(self, steps: StreamSteps) -> AsyncIterator[Any]:
        """One for each entry, in their order."""
        entries = aiter(self._entries)
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._perform(step, entries)
                except grpc.RpcError as failure:
                    step = steps.throw(failure)
                    continue
                if isinstance(step, Deliver):
                    for each in step.answers:
                        yield each
                step = steps.send(answer)
        except StopIteration:
            return
        finally:
            self._end()

    async def _perform(self, step: Step, entries: AsyncIterator[Any]) -> Any:
        match step:
            case Take(count):
                return await _taken(entries, count)
            case Pause(seconds):
                return await self._sleep(seconds)
            case Open(timeout_s):
                self._end()
                self._call = self._method()(timeout=timeout_s)
            case Write(request):
                with suppress(asyncio.InvalidStateError):  # it is over; reading says how
                    await self._call.write(request)
            case Read():
                return await self._read()
            case Close():
                with suppress(asyncio.InvalidStateError):
                    await self._call.done_writing()
                await self._read()
        return None

    async def _read(self) -> Any:
        response = await self._call.read()
        return None if response is grpc.aio.EOF else response

    def _end(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None


async def _async(entries: Iterable[Any]) -> AsyncIterator[Any]:
    for entry in entries:
        yield entry


async def _taken(entries: AsyncIterator[Any], count: int) -> list[Any]:
    taken: list[Any] = []
    while len(taken) < count:
        try:
            taken.append(await anext(entries))
        except StopAsyncIteration:
            break
    return taken
