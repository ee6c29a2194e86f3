"""Whether the event loop keeps up: what holds it up holds up every call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

EVERY_S: Final = 0.5


async def watch_loop(observe: Callable[[float], None], every_s: float = EVERY_S) -> None:
    """Tell ``observe`` again and again how many seconds too late this loop wakes a sleeper."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + every_s
        await asyncio.sleep(every_s)
        observe(max(0.0, clock() - due))
