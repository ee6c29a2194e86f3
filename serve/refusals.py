"""Calls for which the queue has no room: told so at once while they are few, else held a while.

What is held is let in as soon as there is room: it would come back anyway, and telling it to costs
a fifth of what an answer does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from itertools import chain
from typing import Final

from edgewright.errors import OverloadedError
from edgewright.serve.admission import RETRY_FLOOR_S
from edgewright.serve.grpc_options import MAX_UNSEEN_CALLS

# Of a core a refusal costs 0.15 ms and more, nearly all of it gRPC's, which answering lacks. Who
# waits for a refusal does not call meanwhile, and of what a client wants beyond the calls that a
# connection may have, nothing comes here: few are told, so few come.
PER_S: Final = 400.0
LONGEST_S: Final = 2.0
# As much as sixteen full connections; for memory is bounded.
MOST_HELD: Final = MAX_UNSEEN_CALLS[0]
_BURST: Final = 40  # that are told at once after a quiet time
# What is due within a tick is told together, for each by itself would wake threads of gRPC.
_TICK_S: Final = 0.02


class Refusals:
    """Holds calls until there is room, or they may be told that there is none. On the event loop.

    ``per_s`` are told in all, of which every connection with some held has an equal share: one
    that sends many delays its own. None waits for longer than ``longest_s``, nor for more than
    half of what its deadline leaves. ``most`` wait at once: where others have all places, one of a
    connection that has fewer than its share takes that of the newest of who has most. Connections
    take turns at room, too, and of each who came first is let in first.
    """

    def __init__(
        self, per_s: float = PER_S, longest_s: float = LONGEST_S, most: int = MOST_HELD
    ) -> None:
        self._per_s, self._longest_s, self._most = per_s, longest_s, most
        self._held = _ByConnection()
        self._waiting = _ByConnection()  # those of them that can be let in
        self.on_the_way = 0  # calls that were let in and have not come to the queue
        self._paid_until = 0.0  # by the loop's clock: so far ahead of ``per_s`` is what was told
        self._draining = False

    @property
    def held(self) -> int:
        """Calls that wait for room, or to be told that there is none."""
        return len(self._held)

    @property
    def waiting(self) -> int:
        """Those of them that can be let in."""
        return len(self._waiting)

    def let_in(self) -> None:
        """The next that waits for room: there is some."""
        if self._waiting:
            call = self._waiting.take_next()
            if not call.done():
                self.on_the_way += 1
                call.set_result(True)

    def entered(self) -> None:
        """One that was let in has come to the queue, or left."""
        self.on_the_way -= 1

    def drain(self) -> None:
        """Tell all now, and from now on at once."""
        self._draining = True
        for each in self._held:
            _wake(each)

    async def pace(
        self,
        refusal: OverloadedError,
        connection: str,
        left_s: float | None,
        *,
        for_room: bool = False,
    ) -> bool:
        """Wait until ``refusal`` may be told; its caller is to come back so much sooner.

        Args:
            left_s: until the call's deadline, None where it has none.
            for_room: the call may be let in meanwhile. Whether it was.
        """
        clock = asyncio.get_running_loop().time
        came = clock()
        delay_s = self.delay_s(came, connection, left_s)
        if delay_s > 0:
            if await self._hold(connection, due(came, delay_s, left_s), for_room=for_room):
                return True
            refusal.retry_after_s = _sooner(refusal.retry_after_s, clock() - came)
        self.told(clock())
        return False

    def delay_s(self, now: float, connection: str, left_s: float | None) -> float:
        """For how long a call that comes now is to wait."""
        paid = self._paid_until < now + _BURST / self._per_s
        own = self._held.of(connection)
        connections = self._held.connections + (not own)
        full = len(self._held) >= self._most and own >= self._most // connections
        if self._draining or full or (paid and not self._held):
            return 0.0
        longest_s = self._longest_s if left_s is None else min(self._longest_s, left_s / 2)
        return min((own + 1) * connections / self._per_s, longest_s)

    def told(self, now: float) -> None:
        """One call more was; how many were too many is forgotten as soon as a burst is."""
        most = now + (_BURST + 1) / self._per_s
        self._paid_until = min(max(now, self._paid_until) + 1 / self._per_s, most)

    async def _hold(self, connection: str, until: float, *, for_room: bool) -> bool:
        loop = asyncio.get_running_loop()
        if len(self._held) >= self._most:
            greediest, newest = self._held.newest_of_most()
            self._let_go(greediest, newest)
            _wake(newest)
        call: asyncio.Future[bool] = loop.create_future()  # whether there is room for it
        timer = loop.call_at(until, _wake, call)
        self._held.add(connection, call)
        if for_room:
            self._waiting.add(connection, call)
        try:
            return await call
        except asyncio.CancelledError:
            if not call.cancelled() and call.result():  # he was let in at the same moment
                self.entered()
            raise
        finally:  # also of a caller who has left
            timer.cancel()
            self._let_go(connection, call)

    def _let_go(self, connection: str, call: asyncio.Future[bool]) -> None:
        self._held.discard(connection, call)
        self._waiting.discard(connection, call)


class _ByConnection:
    """Calls in the order of their coming, by connection; those take turns."""

    def __init__(self) -> None:
        self._calls: dict[str, dict[asyncio.Future[bool], None]] = {}  # of those that have some
        self._by_number: dict[int, dict[str, None]] = {}  # connections, by how many they have
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[asyncio.Future[bool]]:
        return chain.from_iterable(self._calls.values())

    @property
    def connections(self) -> int:
        """How many have a call here."""
        return len(self._calls)

    def of(self, connection: str) -> int:
        """How many calls it has here."""
        return len(self._calls.get(connection, ()))

    def add(self, connection: str, call: asyncio.Future[bool]) -> None:
        """Behind all others of its connection."""
        calls = self._calls.setdefault(connection, {})
        calls[call] = None
        self._count += 1
        self._renumber(connection, len(calls) - 1, len(calls))

    def discard(self, connection: str, call: asyncio.Future[bool]) -> None:
        """Take it out; it may have gone already."""
        calls = self._calls.get(connection, {})
        if call in calls:
            del calls[call]
            self._count -= 1
            self._renumber(connection, len(calls) + 1, len(calls))
            if not calls:
                del self._calls[connection]

    def take_next(self) -> asyncio.Future[bool]:
        """Take out the first of the connection whose turn it is."""
        connection, calls = next(iter(self._calls.items()))
        first = next(iter(calls))
        self.discard(connection, first)
        if connection in self._calls:  # its next turn is after all others'
            self._calls[connection] = self._calls.pop(connection)
        return first

    def newest_of_most(self) -> tuple[str, asyncio.Future[bool]]:
        """The connection with most calls, and the last that it sent."""
        connection = next(iter(self._by_number[max(self._by_number)]))
        return connection, next(reversed(self._calls[connection]))

    def _renumber(self, connection: str, before: int, now: int) -> None:
        """Where all places are taken, a look at every connection of 1,024 costs 0.1 ms a call."""
        if before:
            del self._by_number[before][connection]
            if not self._by_number[before]:
                del self._by_number[before]
        if now:
            self._by_number.setdefault(now, {})[connection] = None


def due(came: float, delay_s: float, left_s: float | None) -> float:
    """When to tell who came then: at a tick, unless half of what his deadline leaves ends before.

    ``delay_s`` is no more than that half. Times are by the loop's clock.
    """
    ticks = math.ceil((came + delay_s) / _TICK_S)
    if left_s is None or ticks * _TICK_S <= came + left_s / 2:
        return ticks * _TICK_S
    before = (ticks - 1) * _TICK_S
    return before if before > came else came + left_s / 2


def _wake(call: asyncio.Future[bool]) -> None:
    if not call.done():
        call.set_result(False)


def _sooner(retry_after_s: float, held_s: float) -> float:
    """In hundredths, of which there are so few that statuses can be kept; never at once."""
    return max(round(retry_after_s - held_s, 2), min(retry_after_s, RETRY_FLOOR_S))
