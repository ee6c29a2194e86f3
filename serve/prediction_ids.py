"""Identifiers of predictions: unique across replicas and restarts, in the order they were given."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

_COUNTER_BITS = 26
_NODE_BITS = 48


class PredictionIds:
    """UUIDs of version 7 (RFC 9562): milliseconds, a counter, and 48 random bits of the process.

    The counter fills ``rand_a`` and the head of ``rand_b`` (section 6.2, method 1), so that ids of
    one process ascend even where the clock stands still or steps back.
    """

    def __init__(
        self, *, node: int | None = None, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        number = secrets.randbits(_NODE_BITS) if node is None else node
        self._node = f"{number:012x}"
        self._clock_ns = clock_ns
        self._last = 0  # milliseconds << _COUNTER_BITS | counter

    def take(self, count: int) -> list[str]:
        """The next ``count`` ids, ascending, in the canonical form of a UUID."""
        now = self._clock_ns() // 1_000_000 << _COUNTER_BITS
        first = max(now, self._last + 1)
        self._last = first + count - 1
        return [self._format(tick) for tick in range(first, first + count)]

    def _format(self, tick: int) -> str:
        return "%08x-%04x-%04x-%04x-%s" % (  # noqa: UP031 -- quicker than an f-string
            tick >> 42,
            tick >> _COUNTER_BITS & 0xFFFF,
            0x7000 | tick >> 14 & 0xFFF,
            0x8000 | tick & 0x3FFF,
            self._node,
        )
