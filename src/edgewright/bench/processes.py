"""The processes that make the load, seen from the one that asks for it."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.resource_tracker import ensure_running
from typing import Any, Final

from edgewright.bench.config import BenchConfig, Load
from edgewright.bench.requests import Requests
from edgewright.bench.tally import Tally, Window
from edgewright.bench.worker import STOP, Step, Worker, work
from edgewright.connection import Connection
from edgewright.errors import EdgewrightError

_START_S: Final = 60.0  # to import what it needs, on a machine that is busy
_LEAD_S: Final = 0.1  # between telling the processes of a load and its start
_TICK_S: Final = 0.25


@dataclass(frozen=True)
class Measured:
    """What a load came to; where the user broke it off, the window ends there."""

    load: Load
    window: Window
    tally: Tally
    interrupted: bool


class Processes:
    """Makes loads, one after the other, in processes that are started once."""

    def __init__(
        self,
        pairs: Sequence[tuple[SpawnProcess, Pipe]],
        config: BenchConfig,
        watch: Callable[[Load, float], bool],
    ) -> None:
        self._pairs = pairs
        self._config = config
        self._watch = watch

    def run(self, load: Load) -> Measured:
        """Make a load; ``watch`` hears how long it has run, and says whether to go on."""
        start = time.monotonic() + _LEAD_S
        measured_from = start + self._config.warm_up_s
        window = Window(start, measured_from, measured_from + self._config.duration_s)
        for index, (process, pipe) in enumerate(self._pairs):
            _send(pipe, process, Step(load.share(index, len(self._pairs)), window))
        tally, stopped_at = Tally(), window.end
        stopping = False
        pending: dict[Any, SpawnProcess] = {pipe: process for process, pipe in self._pairs}
        while pending:
            for answered in wait(list(pending), _TICK_S):
                counted = _received(answered, pending.pop(answered))
                tally.add(counted.tally)
                stopped_at = min(stopped_at, counted.stopped_at or window.end)
            if not self._watch(load, time.monotonic() - start) and not stopping:
                stopping = True
                for pipe, process in pending.items():
                    _send(pipe, process, STOP)
        return Measured(load, replace(window, end=stopped_at), tally, stopping)


@contextlib.contextmanager
def processes(
    connection: Connection,
    requests: Requests,
    config: BenchConfig,
    watch: Callable[[Load, float], bool] = lambda load, seconds: True,
) -> Iterator[Processes]:
    """Start ``config.processes`` of them; they end with the block.

    ``watch`` hears every quarter of a second which load has run for how long; where it gives False,
    the load is broken off.
    """
    context = multiprocessing.get_context("spawn")
    pairs: list[tuple[SpawnProcess, Pipe]] = []
    try:
        for index in range(config.processes):
            ours, its = context.Pipe()
            worker = Worker(index, config.processes, connection, requests, config.seed)
            process = context.Process(target=work, args=(worker, its), daemon=True)
            with _deaf_to_interrupts():
                process.start()
            its.close()  # so that its end is heard
            pairs.append((process, ours))
        for process, pipe in pairs:
            if not pipe.poll(_START_S):
                raise EdgewrightError(f"a load process did not start within {_START_S:g} s")
            _received(pipe, process)
        yield Processes(pairs, config, watch)
    finally:
        for _, pipe in pairs:
            pipe.close()
        for process, _ in pairs:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What starts meanwhile never hears Ctrl-C, which goes to all of a terminal; we do, after."""
    ensure_running()  # multiprocessing's own process, whose start would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(pipe: Pipe, process: SpawnProcess, message: Any) -> None:
    try:
        pipe.send(message)
    except OSError as error:
        raise _died(process) from error


def _received(pipe: Any, process: SpawnProcess) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError) as error:
        raise _died(process) from error


def _died(process: SpawnProcess) -> EdgewrightError:
    process.join(5)
    return EdgewrightError(
        f"a process that makes the load has died (exit code {process.exitcode}); where it was "
        "killed for its memory, give fewer or smaller inputs"
    )
