"""Ctrl-C, which ends a run without losing what it has measured."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupt:
    """Whether the user has asked to stop."""

    asked = False


@contextlib.contextmanager
def interrupt_once() -> Iterator[Interrupt]:
    """The first Ctrl-C within the block is noted; the next is what it always is."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt  # signals are the main thread's
        return
    before = signal.getsignal(signal.SIGINT)

    def note(_signal: int, _frame: Any) -> None:
        interrupt.asked = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
