"""Calls for which the queue has no room: told so at once while they are few, else held a while.

What is held is let in as soon as there is room: it would come back anyway, and telling it to costs
a fifth of what an answer does.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import Final

from edgewright.errors import OverloadedError
from edgewright.serve.admission import RETRY_FLOOR_S
from edgewright.serve.grpc_options import MAX_UNSEEN_CALLS

# Of a core a refusal costs 0.15 ms and more, nearly all of it gRPC's, which answering lacks. Who
# waits for a refusal does not call meanwhile, and of what a client wants beyond the calls that a
# connection may have, nothing comes here: few are told, so few come.
PER_S: Final = 400.0
LONGEST_S: Final = 2.0
# As much as sixteen full connections. What comes beyond is told at once, for memory is bounded.
MOST_HELD: Final = MAX_UNSEEN_CALLS[0]
_BURST: Final = 40  # that are told at once after a quiet time
# What is due within a tick is told together, for each by itself would wake threads of gRPC.
_TICK_S: Final = 0.02


class Refusals:
    """Holds calls until there is room, or they may be told that there is none. On the event loop.

    ``per_s`` are told in all, of which every connection with some held has an equal share: one
    that sends many delays its own. None waits for longer than ``longest_s``, nor for more than
    half of what its deadline leaves; beyond ``most`` none waits. Connections take turns at room,
    too, and of each who came first is let in first.
    """

    def __init__(
        self, per_s: float = PER_S, longest_s: float = LONGEST_S, most: int = MOST_HELD
    ) -> None:
        self._per_s, self._longest_s, self._most = per_s, longest_s, most
        self._held: set[asyncio.Future[bool]] = set()  # whether there is room for each
        self._of_connection: Counter[str] = Counter()  # has those alone that have some held
        self.waiting = 0  # calls that can be let in
        # They, by connection in the order of their turns.
        self._waiting: dict[str, dict[asyncio.Future[bool], None]] = {}
        self.on_the_way = 0  # calls that were let in and have not come to the queue
        self._paid_until = 0.0  # by the loop's clock: so far ahead of ``per_s`` is what was told
        self._draining = False

    @property
    def held(self) -> int:
        """Calls that wait for room, or to be told that there is none."""
        return len(self._held)

    def let_in(self) -> None:
        """The next that waits for room: there is some."""
        if not self._waiting:
            return
        connection, calls = next(iter(self._waiting.items()))
        first = next(iter(calls))
        self._wait_no_more(connection, first)
        if connection in self._waiting:  # its next turn is after all others'
            self._waiting[connection] = self._waiting.pop(connection)
        if not first.done():
            self.on_the_way += 1
            first.set_result(True)

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
            until = math.ceil((came + delay_s) / _TICK_S) * _TICK_S
            if await self._hold(connection, until, for_room=for_room):
                return True
            refusal.retry_after_s = _sooner(refusal.retry_after_s, clock() - came)
        self.told(clock())
        return False

    def delay_s(self, now: float, connection: str, left_s: float | None) -> float:
        """For how long a call that comes now is to wait."""
        paid = self._paid_until < now + _BURST / self._per_s
        if self._draining or len(self._held) >= self._most or (paid and not self._held):
            return 0.0
        own = self._of_connection.get(connection, 0)
        connections = len(self._of_connection) + (not own)
        longest_s = self._longest_s if left_s is None else min(self._longest_s, left_s / 2)
        return min((own + 1) * connections / self._per_s, longest_s)

    def told(self, now: float) -> None:
        """One call more was; how many were too many is forgotten as soon as a burst is."""
        most = now + (_BURST + 1) / self._per_s
        self._paid_until = min(max(now, self._paid_until) + 1 / self._per_s, most)

    async def _hold(self, connection: str, until: float, *, for_room: bool) -> bool:
        loop = asyncio.get_running_loop()
        due: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_at(until, _wake, due)
        self._held.add(due)
        if for_room:
            self._waiting.setdefault(connection, {})[due] = None
            self.waiting += 1
        self._of_connection[connection] += 1
        try:
            return await due
        except asyncio.CancelledError:
            if not due.cancelled() and due.result():  # he was let in at the same moment
                self.entered()
            raise
        finally:  # also of a caller who has left
            timer.cancel()
            self._held.discard(due)
            self._wait_no_more(connection, due)
            self._of_connection[connection] -= 1
            if not self._of_connection[connection]:
                del self._of_connection[connection]

    def _wait_no_more(self, connection: str, due: asyncio.Future[bool]) -> None:
        calls = self._waiting.get(connection, {})
        if due in calls:
            del calls[due]
            self.waiting -= 1
            if not calls:
                del self._waiting[connection]


def _wake(due: asyncio.Future[bool]) -> None:
    if not due.done():
        due.set_result(False)


def _sooner(retry_after_s: float, held_s: float) -> float:
    """In hundredths, of which there are so few that statuses can be kept; never at once."""
    return max(round(retry_after_s - held_s, 2), min(retry_after_s, RETRY_FLOOR_S))
