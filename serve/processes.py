"""A server of several processes on one gRPC port, among which the kernel shares out connections.

The process that was started loads no model. It keeps the ports, starts the others by spawn, and
starts again whichever ends. They share nothing else: each follows the repository on its own, and
has its own queue, HTTP port and metrics. The first has the admin port, and has loaded before the
others start, so that a bundle is proven, and measured where it must be, by one process alone. None
is ready before all are, lest the first get what is meant for all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final, TypeVar

from edgewright.proof.host import available_cores
from edgewright.serve.config import ServeConfig
from edgewright.serve.grace import LAST_S
from edgewright.serve.host_choice import Remeasure
from edgewright.serve.member import Logs, Member
from edgewright.serve.ports import reserved
from edgewright.serve.stop_signals import stop_on_signals

_FIRST_PAUSE_S: Final = 1.0  # before what ended is started again
_LONGEST_PAUSE_S: Final = 30.0
_SPARE_S: Final = 10.0  # for one that was told to drain before it could hear

T = TypeVar("T")

log = logging.getLogger(__name__)


async def serve_in_processes(
    config: ServeConfig, announce: Callable[[dict[str, Any]], None], logs: Logs
) -> int:
    """Serve from ``config.processes`` until SIGTERM or SIGINT, let all drain; the worst exit code.

    ``announce`` is called once, when every process answers, with what the first one tells and
    ``processes``: ``pid`` and ``metrics_port`` of each. A second SIGTERM or SIGINT kills them all.

    Raises:
        ConfigError, ModelNotFoundError, IntegrityError, BackendUnavailableError: as ``serve``; no
            process is left.
        NotReadyError: one of them ended before it was ready.
    """
    started = time.monotonic()
    if config.processes > available_cores():
        log.warning(
            "--processes is %d, and there are cores for %d; they will wait for each other",
            config.processes,
            available_cores(),
        )
    with ExitStack() as ports:
        members = [Member(number, each, logs) for number, each in enumerate(_shares(config, ports))]
        stop = stop_on_signals(at_the_second=lambda: _kill(members))
        stopping = asyncio.create_task(stop.wait())
        try:
            told = await _until(stopping, _start_all(members))
            if told is None:
                log.info("stopped before all processes were ready")
            else:
                ready_ms = round(1000 * (time.monotonic() - started), 1)
                announce({**told[0], "ready_ms": ready_ms, "processes": _listed(members, told)})
                await _until(stopping, _keep_all(members))
            log.info("draining %d processes", len(members))
            return max(await _drain(members, config))
        finally:
            stopping.cancel()
            _kill(members)
            await asyncio.gather(*(each.ended() for each in members))


def _shares(config: ServeConfig, ports: ExitStack) -> Iterator[ServeConfig]:
    """What each process is told; its ports are kept for it until ``ports`` is closed."""

    def keep(port: int, option: str) -> int:
        return ports.enter_context(reserved(config.host, port, option))

    shared = keep(config.port, "--port")
    for number in range(config.processes):
        wanted = config.metrics_port and config.metrics_port + number
        yield replace(
            config,
            port=shared,
            metrics_port=keep(wanted, "--metrics-port"),
            admin_port=None if number else config.admin_port,
            processes=1,
            sharing=config.processes,
            # The first has measured; nobody does so again beside those that answer.
            remeasure=_once(config.remeasure) if number else config.remeasure,
        )


def _once(remeasure: str) -> str:
    return Remeasure.AUTO if remeasure == Remeasure.ALWAYS else remeasure


async def _start_all(members: Sequence[Member]) -> list[dict[str, Any]]:
    await members[0].load()
    await _all(each.load() for each in members[1:])
    told = await _all(each.answer() for each in members)
    # Started again, the first has the port that was announced, and what was measured stands.
    kept = members[0].config
    members[0].config = replace(
        kept, admin_port=told[0]["admin_port"], remeasure=_once(kept.remeasure)
    )
    return told


async def _all(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What each gives; or what one of them raises, and then no other waits any more.

    One that did would take the end of its process from who waits for that next.
    """
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _keep_all(members: Sequence[Member]) -> None:
    await asyncio.gather(*(_keep(each) for each in members))


async def _keep(member: Member) -> None:
    """Start it again whenever it ends."""
    pause_s = _FIRST_PAUSE_S
    while True:
        begun = time.monotonic()
        code = await member.ended()
        if time.monotonic() - begun > _LONGEST_PAUSE_S:
            pause_s = _FIRST_PAUSE_S
        log.error(
            "%s ended with exit code %d; the others go on, and it is started again in %g s",
            member,
            code,
            pause_s,
        )
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        try:
            await member.load()
            await member.answer()
        except Exception as error:  # an edge: nobody else would hear of it, and the next may do
            log.error("%s is not ready: %s", member, error)
        else:
            log.info("%s answers again", member)


async def _until(stopping: asyncio.Task[Any], work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` gives; None where it was to stop before."""
    working = asyncio.create_task(work)
    await asyncio.wait((stopping, working), return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        return working.result()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return None


async def _drain(members: Sequence[Member], config: ServeConfig) -> list[int]:
    """Let all finish what is in flight; their exit codes. Each keeps to its own grace.

    One that had ended before, and was told of then, counts only where no other runs.
    """
    members = [each for each in members if each.runs] or members
    for member in members:
        member.drain()
    codes = asyncio.gather(*(each.ended() for each in members))
    try:
        async with asyncio.timeout(config.drain_delay_s + config.grace_s + LAST_S + _SPARE_S):
            return await codes
    except TimeoutError:
        log.error("some processes did not end after --grace; they are killed")
    _kill(members)
    return await asyncio.gather(*(each.ended() for each in members))


def _kill(members: Sequence[Member]) -> None:
    for member in members:
        member.kill()


def _listed(members: Sequence[Member], told: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"pid": member.pid, "metrics_port": each["metrics_port"]}
        for member, each in zip(members, told, strict=True)
    ]
