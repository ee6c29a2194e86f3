"""One process of a server of several: started by spawn, and told to drain by a pipe's end."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from edgewright.errors import EdgewrightError, NotReadyError
from edgewright.serve.announcement import told
from edgewright.serve.config import ServeConfig
from edgewright.serve.grace import CUT_OFF
from edgewright.serve.logs import log_to_stderr
from edgewright.serve.server import serve

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_SPAWN: Final = get_context("spawn")


@dataclass(frozen=True)
class Logs:
    """How each process writes its log to stderr."""

    style: str
    level: int


class Member:
    """A process that answers by ``config``, as its parent sees it. Lives on the event loop."""

    def __init__(self, number: int, config: ServeConfig, logs: Logs) -> None:
        self.config = config
        self._number, self._logs = number, logs
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def __str__(self) -> str:
        return f"process {self._number} (pid {self.pid}, HTTP port {self.config.metrics_port})"

    @property
    def pid(self) -> int | None:
        """Of the process, where one was started."""
        return self._process.pid if self._process else None

    async def start(self) -> dict[str, Any]:
        """Start it, once it has ended where it ran before; what it tells when it answers.

        Raises:
            EdgewrightError, OSError: why it cannot answer.
            NotReadyError: it ended without a word.
        """
        self.drain()
        self._pipe, theirs = _SPAWN.Pipe()
        arguments = (self.config, self._logs, theirs)
        self._process = _SPAWN.Process(target=_run, args=arguments, name=f"serve-{self._number}")
        with _signals_held_back():
            self._process.start()
        theirs.close()
        await _readable(self._pipe.fileno())
        try:
            first = self._pipe.recv()
        except (EOFError, OSError):
            code = await self.ended()
            raise NotReadyError(
                f"{self} ended with exit code {code} before it was ready; the log above may say why"
            ) from None
        if isinstance(first, Exception):
            raise first
        return dict(first)

    async def ended(self) -> int:
        """Wait until it has ended; its exit code, or 128 and the number of the signal."""
        if self._process is None:
            return 0
        await _readable(self._process.sentinel)
        self._process.join()
        code = self._process.exitcode or 0
        return code if code >= 0 else 128 - code

    def drain(self) -> None:
        """Let it finish what is in flight and end."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()


def _run(config: ServeConfig, logs: Logs, parent: Connection) -> None:
    """What the process does; it drains when ``parent`` ends too, however that came."""
    with log_to_stderr(logs.style, level=logs.level) as log_thread:
        try:
            whole = asyncio.run(
                serve(
                    config,
                    lambda ready: parent.send(told(ready)),
                    log_thread,
                    lambda begin: _stop_with(parent, begin),
                )
            )
        except (EdgewrightError, OSError) as error:
            with suppress(OSError):  # the parent is gone
                parent.send(error)
            sys.exit(getattr(error, "exit_code", 1))
    sys.exit(0 if whole else CUT_OFF)


def _stop_with(parent: Connection, begin: Callable[[], None]) -> asyncio.Event:
    """Set when the parent closes its end, or by a signal.

    A terminal or a service manager may signal every process: what comes twice is no haste here.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told_to() -> None:
        loop.remove_reader(parent.fileno())
        if not stop.is_set():
            stop.set()
            begin()

    loop.add_reader(parent.fileno(), told_to)
    for number in _SIGNALS:
        loop.add_signal_handler(number, told_to)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    return stop


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """What is started here gets no signal before it can drain."""
    resource_tracker.ensure_running()  # its start, which is else the first process's, frees signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _readable(file: int) -> None:
    """Wait until there is something to read, if only the end."""
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_reader(file, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(file)
