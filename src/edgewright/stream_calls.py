"""Performs the steps of a ``ResumedStream``, on a thread or on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from itertools import islice
from queue import SimpleQueue
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from edgewright.calls import Pause
from edgewright.resumed_stream import (
    Close,
    Deliver,
    Open,
    Read,
    Step,
    StreamSteps,
    Take,
    Taken,
    Write,
)


class StreamCall:
    """Performs the steps on the thread that takes the answers; ``method`` is the RPC.

    ``guard`` is entered around what is done with it.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        entries: Iterator[Any],
        guard: Callable[[], AbstractContextManager[None]],
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self._method = method
        self._entries = entries
        self._guard = guard
        self._sleep = sleep
        self._clock = clock
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
                    if isinstance(step, Take):  # not of this stream: the caller's own
                        raise
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
            case Take(count, within_s):
                return self._take(count, self._clock() + within_s)
            case Pause(seconds):
                return self._sleep(seconds)
            case Deliver():
                return None
        with self._guard():
            return self._perform_call(step)

    def _perform_call(self, step: Step) -> Any:
        match step:
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

    def _take(self, count: int, until: float) -> Taken:
        taken = []
        for entry in islice(self._entries, count):
            taken.append(entry)
            if self._clock() >= until:
                return Taken(taken, exhausted=False)
        return Taken(taken, exhausted=len(taken) < count)

    def _end(self) -> None:
        if self._call is not None:
            self._requests.put(None)  # frees the thread that gRPC reads them with
            self._call.cancel()
            self._call = None


class AsyncStreamCall:
    """Performs the steps on the event loop; ``method`` gives the RPC, once there is a loop.

    ``guard`` as in ``StreamCall``.
    """

    def __init__(
        self,
        method: Callable[[], Any],
        entries: Iterable[Any] | AsyncIterable[Any],
        guard: Callable[[], AbstractAsyncContextManager[None]],
        sleep: Callable[[float], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self._method = method
        self._taking = _Taking(
            aiter(entries if isinstance(entries, AsyncIterable) else _async(entries)), clock
        )
        self._guard = guard
        self._sleep = sleep
        self._call: Any = None

    async def answers(self, steps: StreamSteps) -> AsyncIterator[Any]:
        """One for each entry, in their order."""
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._perform(step)
                except grpc.RpcError as failure:
                    if isinstance(step, Take):  # not of this stream: the caller's own
                        raise
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
            await self._taking.end()

    async def _perform(self, step: Step) -> Any:
        match step:
            case Take(count, within_s):
                return await self._taking.next(count, within_s)
            case Pause(seconds):
                return await self._sleep(seconds)
            case Deliver():
                return None
        async with self._guard():
            return await self._perform_call(step)

    async def _perform_call(self, step: Step) -> Any:
        match step:
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


class _Taking:
    """The caller's entries, as they come; one that is waited for is not cancelled meanwhile."""

    def __init__(self, entries: AsyncIterator[Any], clock: Callable[[], float]) -> None:
        self._entries = entries
        self._clock = clock
        self._taken: list[Any] = []
        self._task: asyncio.Task[bool] | None = None

    async def next(self, count: int, within_s: float) -> Taken:
        """Those that come within so long, at most ``count``; raises what the caller's do."""
        if self._task is None:
            self._task = asyncio.create_task(self._take(count, self._clock() + within_s))
        await asyncio.wait({self._task}, timeout=within_s)
        exhausted = False
        if self._task.done():
            ended, self._task = self._task, None
            exhausted = ended.result()
        taken, self._taken = self._taken, []
        return Taken(taken, exhausted)

    async def end(self) -> None:
        """Wait for no more of them."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _take(self, count: int, until: float) -> bool:
        """Whether they are the last."""
        while len(self._taken) < count:
            try:
                entry = await anext(self._entries)
            except StopAsyncIteration:
                return True
            self._taken.append(entry)  # to the list of now, not of before the wait
            if self._clock() >= until:
                break
        return False


async def _async(entries: Iterable[Any]) -> AsyncIterator[Any]:
    for entry in entries:
        yield entry
