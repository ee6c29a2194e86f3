"""When a server is to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

# Gives what is waited for before a server stops, and calls what it is given when that comes.
Stops = Callable[[Callable[[], None]], asyncio.Event]


def stop_on_signals(
    at_the_first: Callable[[], None] = lambda: None,
    at_the_second: Callable[[], None] = lambda: None,
) -> asyncio.Event:
    """Set by SIGTERM or SIGINT; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if stop.is_set():
            at_the_second()
            os._exit(128 + number)  # the second: whoever sent it does not want to wait
        stop.set()
        at_the_first()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received, number)
    return stop
