"""One call through either client, the one for threads or the one for asyncio; and a test clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from edgewright.client import AsyncClient, Client

KINDS = ("sync", "async")


@dataclass
class Clock:
    """Time that passes only while a client sleeps."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def async_sleep(self, seconds: float) -> None:
        self.sleep(seconds)


def ask(
    kind: str,
    target: str,
    method: str,
    *args: Any,
    clock: Clock | None = None,
    closed: bool = False,
    **options: Any,
) -> Any:
    """The same call through either client, one that is ``closed``, it may be.

    ``call_options`` go to the method; what streams comes as a list.
    """
    call_options = options.pop("call_options", {})
    if clock is not None:
        sleep = clock.sleep if kind == "sync" else clock.async_sleep
        options |= {"clock": clock, "sleep": sleep}
    if kind == "sync":
        with Client(target, **options) as client:
            if closed:
                client.close()
            answer = getattr(client, method)(*args, **call_options)
            return list(answer) if isinstance(answer, Iterator) else answer

    async def run() -> Any:
        async with AsyncClient(target, **options) as client:
            if closed:
                await client.close()
            answer = getattr(client, method)(*args, **call_options)
            if isinstance(answer, AsyncIterator):
                return [each async for each in answer]
            return await answer

    return asyncio.run(run())
