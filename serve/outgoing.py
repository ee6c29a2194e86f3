"""Answers on their way to callers, who may be slow to take them, or take nothing at all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


class Outgoing:
    """The tasks that send answers, and since when. Lives on the event loop."""

    def __init__(self) -> None:
        self._since: dict[asyncio.Task[Any], float] = {}

    def __len__(self) -> int:
        return len(self._since)

    @contextmanager
    def here(self) -> Iterator[None]:
        """Within, the present task sends."""
        task = asyncio.current_task()
        assert task is not None
        self._since[task] = time.monotonic()
        try:
            yield
        finally:
            del self._since[task]

    def end_deaf(self, seconds: float, begun: float) -> None:
        """End those whose callers have not taken an answer for so long since ``begun``."""
        before = time.monotonic() - seconds
        deaf = [task for task, since in self._since.items() if max(since, begun) < before]
        for task in deaf:
            task.cancel()
        if deaf:
            log.warning("%d calls were ended whose callers do not take their answers", len(deaf))
