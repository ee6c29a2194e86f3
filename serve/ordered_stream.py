"""A bidirectional stream: messages are worked on side by side and answered in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from edgewright.serve.call_observer import CallObserver
from edgewright.serve.shutting_down import shutting_down

# What of one stream is read ahead of its answers, and never more memory than this and one message.
BYTES_AHEAD: Final = 4 << 20

Response = TypeVar("Response")


@dataclass(frozen=True, eq=False)
class OrderedStream:
    """How a method's messages are read: ``messages_ahead`` at most wait for their answers."""

    draining: asyncio.Event  # read no further messages; answer what has been read, and end
    messages_ahead: int
    observer: CallObserver  # is told how long each message took

    async def answers(
        self, requests: AsyncIterator[Any], answer: Callable[[Any], Awaitable[Response]]
    ) -> AsyncGenerator[Response, None]:
        """One response for each request; what ``answer`` raises ends the stream.

        Raises:
            NotReadyError: the server drains, and all that was read has been answered.
        """
        work: deque[asyncio.Future[Response]] = deque()  # in the order of the messages
        sizes: deque[int] = deque()  # theirs, in bytes
        draining = asyncio.ensure_future(self.draining.wait())
        reading: asyncio.Future[Any] | None = _next_of(requests)
        try:
            while reading or work:
                if reading and draining.done():
                    reading.cancel()
                    reading = None
                elif reading and reading.done() and self._has_room(sizes):
                    if (request := reading.result()) is None:
                        reading = None
                        continue
                    work.append(asyncio.ensure_future(self.observer.message(answer, request)))
                    sizes.append(request.ByteSize())
                    reading = _next_of(requests)
                elif work and work[0].done():
                    sizes.popleft()
                    yield work.popleft().result()
                else:
                    heard = [reading] if reading and self._has_room(sizes) else []
                    waits: set[asyncio.Future[Any]] = {*heard, *list(work)[:1]}
                    if reading:
                        waits.add(draining)
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                raise shutting_down("go on with another replica")
        finally:
            for each in (draining, reading, *work):
                if each is not None:
                    each.cancel()

    def _has_room(self, sizes: Sequence[int]) -> bool:
        return len(sizes) < self.messages_ahead and sum(sizes) < BYTES_AHEAD


def _next_of(requests: AsyncIterator[Any]) -> asyncio.Future[Any]:
    """The next message; None after the last."""
    return asyncio.ensure_future(anext(requests, None))
