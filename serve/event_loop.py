"""The event loop that calls are answered on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, or Python's own where it is not installed.

    Other threads wake the loop for most of what it does: the one that polls gRPC, and those that
    compute. With uvloop that takes less of a core, which the compute threads have.
    """
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """As ``asyncio.run``, on such a loop."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(coroutine)
