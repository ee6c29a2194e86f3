"""Signals that end a server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

# Gives what is waited for before a server stops, and calls what it is given when that comes.
Stops = Callable[[Callable[[], None]], asyncio.Event]
ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def stop_on_signals(
    at_the_first: Callable[[], None] = lambda: None,
    at_the_second: Callable[[], None] = lambda: None,
) -> asyncio.Event:
    """Set by SIGTERM or SIGINT; a second of those ends the process at once.

    Set by SIGHUP too, as when a terminal is closed, unless it is ignored, as under nohup. It is no
    haste: service managers send it beside SIGTERM, before or after.
    """
    stop, asked = asyncio.Event(), asyncio.Event()  # to stop, by whatever; by one of ENDING
    loop = asyncio.get_running_loop()

    def received(number: signal.Signals) -> None:
        if asked.is_set() and number in ENDING:
            at_the_second()
            os._exit(128 + number)  # whoever sent it does not want to wait
        if number in ENDING:
            asked.set()
        if not stop.is_set():
            stop.set()
            at_the_first()

    for number in ending_signals():
        loop.add_signal_handler(number, received, number)
    return stop


def ending_signals() -> tuple[signal.Signals, ...]:
    """Those that this process is ended by: whoever started it may have SIGHUP ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return ENDING if ignored else (*ENDING, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[None]:
    """What this thread starts meanwhile gets no signal that ends a server, until it wants them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
