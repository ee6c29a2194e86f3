"""One process of a server of several, as its parent has it and as it runs itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from edgewright.errors import EdgewrightError, NotReadyError
from edgewright.serve import event_loop
from edgewright.serve.announcement import told
from edgewright.serve.config import ServeConfig
from edgewright.serve.grace import CUT_OFF
from edgewright.serve.logs import LogThread, log_to_stderr
from edgewright.serve.server import serve
from edgewright.serve.stop_signals import ending_signals, held_back

_SPAWN: Final = get_context("spawn")
# What the two ends of the pipe say. Its end, from the parent, is the word to drain.
_LOADED: Final = "loaded"
_ANSWER: Final = "answer"


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

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.exitcode is None

    async def load(self) -> None:
        """Start it, once it has ended where it ran before, until every model is proven.

        Raises:
            EdgewrightError, OSError: why it cannot answer.
            NotReadyError: it ended without a word.
        """
        self.drain()
        self._pipe, theirs = _SPAWN.Pipe()
        arguments = (self._number, self.config, self._logs, theirs)
        self._process = _SPAWN.Process(target=_run, args=arguments, name=f"serve-{self._number}")
        resource_tracker.ensure_running()  # its start, which is else the first's, frees signals
        with held_back():  # until it can drain
            self._process.start()
        theirs.close()
        await self._heard(self._pipe)

    async def answer(self) -> dict[str, Any]:
        """Let it take calls; what it tells when it does. Raises as ``load``, which comes before."""
        if self._pipe is None:
            raise NotReadyError(f"{self} is told to drain")
        with suppress(OSError):  # it is gone, which is told below
            self._pipe.send(_ANSWER)
        return dict(await self._heard(self._pipe))

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

    async def _heard(self, pipe: Connection) -> Any:
        """What it says next."""
        await _readable(pipe.fileno())
        try:
            said = pipe.recv()
        except (EOFError, OSError):
            code = await self.ended()
            raise NotReadyError(
                f"{self} ended with exit code {code} before it was ready; the log above may say why"
            ) from None
        if isinstance(said, Exception):
            raise said
        return said


class Parent:
    """The process that started this one, by the pipe between them. Lives on the event loop."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._wanted = asyncio.Event()  # answers are

    def stops(self, begin: Callable[[], None]) -> asyncio.Event:
        """Set when the parent closes its end, if only by its own, or by a signal; as ``Stops``.

        A terminal or a service manager may signal every process: what comes twice is no haste here.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def told_to() -> None:
            loop.remove_reader(self._pipe.fileno())
            if not stop.is_set():
                stop.set()
                begin()

        def heard() -> None:
            try:
                self._pipe.recv()
            except (EOFError, OSError):
                told_to()
            else:
                self._wanted.set()

        loop.add_reader(self._pipe.fileno(), heard)
        for number in ending_signals():
            loop.add_signal_handler(number, told_to)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ending_signals())
        return stop

    async def wants_answers(self) -> None:
        """Say that every model is proven, and wait until calls are to be answered."""
        self.hear(_LOADED)
        await self._wanted.wait()

    def hear(self, said: object) -> None:
        """Tell it something, unless it is gone."""
        with suppress(OSError):
            self._pipe.send(said)


def _run(number: int, config: ServeConfig, logs: Logs, pipe: Connection) -> None:
    """What the process does."""
    with log_to_stderr(logs.style, level=logs.level, process=str(number)) as log_thread:
        code = event_loop.run(_code_of(config, log_thread, pipe))
    if log_thread.stuck:  # the interpreter would wait at its end for whoever does not read stderr
        os._exit(code)
    sys.exit(code)


async def _code_of(config: ServeConfig, log_thread: LogThread, pipe: Connection) -> int:
    """Serve; the exit code. What it cannot do, the parent tells."""
    parent = Parent(pipe)
    try:
        whole = await serve(
            config,
            lambda ready: parent.hear(told(ready)),
            log_thread,
            parent.stops,
            parent.wants_answers,
        )
    except (EdgewrightError, OSError) as error:
        parent.hear(error)
        return int(getattr(error, "exit_code", 1))
    return 0 if whole else CUT_OFF


async def _readable(file: int) -> None:
    """Wait until there is something to read, if only the end."""
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_reader(file, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(file)
