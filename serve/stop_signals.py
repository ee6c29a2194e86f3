"""Signals that end a server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Final

# Gives what is waited for before a server stops, and calls what it is given when that comes.
Stops = Callable[[Callable[[], None]], asyncio.Event]
ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def stop_on_signals(
    at_the_first: Callable[[], None] = lambda: None,
    at_the_second: Callable[[], None] = lambda: None,
) -> asyncio.Event:
    """Set by SIGTERM or SIGINT; a second one ends the process at once.

    Set by SIGHUP too, as when a terminal is closed, unless it is ignored, as under nohup. It is no
    haste: service managers send it beside SIGTERM.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if stop.is_set() and number == signal.SIGHUP:
            return
        if stop.is_set():
            at_the_second()
            os._exit(128 + number)  # the second: whoever sent it does not want to wait
        stop.set()
        at_the_first()

    for number in ending_signals():
        loop.add_signal_handler(number, received, number)
    return stop


def ending_signals() -> tuple[signal.Signals, ...]:
    """Those that this process is ended by: whoever started it may have SIGHUP ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return ENDING if ignored else (*ENDING, signal.SIGHUP)
