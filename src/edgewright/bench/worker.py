"""A process that makes load: it is told what to do over a pipe, and sends back what it counted."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import selectors
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Final

from edgewright.bench.arrivals import arrivals, share
from edgewright.bench.caller import Caller
from edgewright.bench.config import Closed, Load
from edgewright.bench.load import MAX_IN_FLIGHT, Send, closed_loop, open_loop
from edgewright.bench.requests import Requests
from edgewright.bench.tally import Effort, Tally, Window
from edgewright.connection import Connection

STOP: Final = "stop"
_CONNECT_S: Final = 10.0


@dataclass(frozen=True)
class Worker:
    """One of ``of`` processes that share a load, and what it sends where."""

    index: int
    of: int
    connection: Connection
    requests: Requests
    seed: int


@dataclass(frozen=True)
class Step:
    """A load to make, this process's share of it, in a window."""

    load: Load
    window: Window


@dataclass(frozen=True)
class Counted:
    """What a process counted of a step, and when it was told to stop, if it was."""

    tally: Tally
    stopped_at: float | None


def work(worker: Worker, pipe: Pipe) -> None:
    """Make the loads that come through ``pipe`` until it is closed; it says when to stop."""
    with asyncio.Runner(loop_factory=_precise_loop) as runner:
        runner.run(_work(worker, pipe))


def _precise_loop() -> asyncio.AbstractEventLoop:
    """epoll, asyncio's own choice, takes whole milliseconds; select takes microseconds.

    It has few files to watch: the connections are gRPC's.
    """
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def _work(worker: Worker, pipe: Pipe) -> None:
    inbox = _inbox(pipe)
    async with worker.connection.async_channel() as channel:
        with contextlib.suppress(TimeoutError):  # then the calls tell what is wrong
            await asyncio.wait_for(channel.channel_ready(), _CONNECT_S)
        first = worker.index * len(worker.requests.messages) // worker.of
        caller = Caller(channel, worker.connection, worker.requests, first)
        gc.collect()
        gc.freeze()  # what is here stays: the collector need not look through it
        with contextlib.suppress(BrokenPipeError):  # the parent has gone, and nobody asks
            pipe.send("ready")
            while isinstance(step := await inbox.get(), Step):
                pipe.send(await _counted(worker, step, caller, inbox))


def _inbox(pipe: Pipe) -> asyncio.Queue[Any]:
    """What the parent says; None once it has gone."""
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[Any] = asyncio.Queue()

    def read() -> None:
        try:
            inbox.put_nowait(pipe.recv())
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            inbox.put_nowait(None)

    loop.add_reader(pipe.fileno(), read)
    return inbox


async def _counted(worker: Worker, step: Step, send: Send, inbox: asyncio.Queue[Any]) -> Counted:
    tally = Tally()
    load = asyncio.ensure_future(_measured(worker, step, send, tally))
    told = asyncio.ensure_future(inbox.get())
    await asyncio.wait((load, told), return_when=asyncio.FIRST_COMPLETED)
    stopped_at = None if load.done() else time.monotonic()
    for each in (load, told):
        if not each.done():
            each.cancel()
            await asyncio.wait((each,))
    if not load.cancelled():
        load.result()
    return Counted(tally, stopped_at)


async def _measured(worker: Worker, step: Step, send: Send, tally: Tally) -> None:
    """The load and, beside it, what it costs; the last call may end before the window does."""
    async with asyncio.TaskGroup() as group:
        effort = group.create_task(_effort(step.window))
        await _load(worker, step, send, tally)
    tally.efforts.append(effort.result())


def _load(worker: Worker, step: Step, send: Send, tally: Tally) -> Awaitable[None]:
    load = step.load
    if isinstance(load, Closed):
        return closed_loop(send, load.callers, step.window, tally)
    due = share(arrivals(load.arrivals, load.rate, worker.seed), worker.index, worker.of)
    return open_loop(send, due, step.window, tally, MAX_IN_FLIGHT)


async def _effort(window: Window) -> Effort:
    """What this process needed while it measured."""
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(window.measured_from - clock())
    began, cpu, waited = clock(), time.process_time(), _waited_s()
    await asyncio.sleep(window.end - clock())
    seconds = clock() - began
    return Effort((time.process_time() - cpu) / seconds, (_waited_s() - waited) / seconds)


def _waited_s() -> float:
    """Seconds that this thread, which runs the loop, was ready to run and had no core."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):  # not Linux, or a kernel that does not count it
        return 0.0
