"""The two kinds of load, on the running event loop, whose clock is the one that counts.

``Send`` makes one call and says how it ended; it never raises but when it is cancelled.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Final

from edgewright.bench.tally import REFUSED, Failure, Tally, Window

Send = Callable[[], Awaitable[Failure | None]]

# Calls in flight of one process's open loop. gRPC keeps some 20 KB for each: without a bound, a
# server that has stopped would fill the memory of the machine that measures it.
MAX_IN_FLIGHT: Final = 4096
# A caller of a closed loop that was refused, or finds no server, waits: as a client does, and since
# a caller that does not would measure nothing but how fast errors come.
PAUSE_S: Final = 0.1
# What was due just before the end may be sent just after it.
_LATE_S: Final = 1.0


async def closed_loop(send: Send, callers: int, window: Window, tally: Tally) -> None:
    """``callers`` callers call until the window ends; returns when the last has its answer."""
    crew = [asyncio.ensure_future(_caller(send, window, tally)) for _ in range(callers)]
    try:
        await asyncio.gather(*crew)
    except asyncio.CancelledError:
        await _break_off(crew)
        raise


async def _caller(send: Send, window: Window, tally: Tally) -> None:
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(window.start - clock())
    while (sent := clock()) < window.end:
        try:
            failure = await send()
        except asyncio.CancelledError:
            tally.unfinished += window.measured_from <= sent
            raise
        if failure is None:
            tally.ended(window, sent, sent, clock())
        else:
            tally.broke(window, sent, failure, clock())
            if failure.code in (REFUSED, "UNAVAILABLE"):
                await asyncio.sleep(PAUSE_S)


async def open_loop(
    send: Send,
    due: Iterator[float],
    window: Window,
    tally: Tally,
    max_in_flight: int = MAX_IN_FLIGHT,
) -> None:
    """Calls at ``due`` seconds from the start; returns when the last has its answer.

    Where ``max_in_flight`` calls wait for their answers, the next is sent when one of them ends.
    Its time runs all the same, from when it was due.
    """
    clock = asyncio.get_running_loop().time
    room = asyncio.Semaphore(max_in_flight)
    in_flight: set[asyncio.Future[None]] = set()
    every = (window.start + offset for offset in due)
    moments = itertools.takewhile(lambda moment: moment < window.end, every)
    try:
        for moment in moments:
            await asyncio.sleep(moment - clock())  # below 0: others have their turn all the same
            held_back = room.locked()
            await room.acquire()
            if clock() > window.end + _LATE_S:
                tally.unsent += window.measured_from <= moment
                break
            call = asyncio.ensure_future(_call(send, moment, held_back, window, tally))
            in_flight.add(call)
            call.add_done_callback(in_flight.discard)
            call.add_done_callback(lambda _: room.release())
        tally.unsent += sum(window.measured_from <= moment for moment in moments)
        await asyncio.gather(*in_flight)
    except asyncio.CancelledError:
        await _break_off(in_flight)
        raise


async def _call(send: Send, due: float, held_back: bool, window: Window, tally: Tally) -> None:
    clock = asyncio.get_running_loop().time
    sent = clock()
    measured = window.measured_from <= due
    if measured and held_back:
        tally.held_back += 1
    elif measured:
        tally.lag.record(sent - due)
    try:
        failure = await send()
    except asyncio.CancelledError:
        tally.unfinished += measured
        raise
    if failure is None:
        tally.ended(window, due, sent, clock())
    else:
        tally.broke(window, due, failure, clock())


async def _break_off(calls: Collection[asyncio.Future[None]]) -> None:
    """Cancel calls, each of which counts itself."""
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
