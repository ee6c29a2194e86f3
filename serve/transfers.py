"""Messages on their way from callers and to them, who may be slow, or let none through at all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


class Transfers:
    """The tasks that receive or send a message, and since when. Lives on the event loop."""

    def __init__(self) -> None:
        self._since: dict[asyncio.Task[Any], float] = {}

    def __len__(self) -> int:
        return len(self._since)

    @contextmanager
    def here(self) -> Iterator[None]:
        """Within, the present task waits for its caller to send or to take a message."""
        task = asyncio.current_task()
        assert task is not None
        self._since[task] = time.monotonic()
        try:
            yield
        finally:
            del self._since[task]

    def end_stuck(self, seconds: float, begun: float) -> None:
        """End those that have waited for so long since ``begun``."""
        before = time.monotonic() - seconds
        stuck = [task for task, since in self._since.items() if max(since, begun) < before]
        for task in stuck:
            task.cancel()
        if stuck:
            log.warning(
                "%d calls were ended whose callers do not send a message, or take an answer",
                len(stuck),
            )
