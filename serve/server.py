"""The life of a server process, from bound ports to a drained exit."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from edgewright.errors import NotReadyError
from edgewright.serve.config import ServeConfig
from edgewright.serve.grace import Grace
from edgewright.serve.grpc_core import warn_of_untested
from edgewright.serve.grpc_options import MAX_CONNECTIONS
from edgewright.serve.logs import LogThread
from edgewright.serve.loop_lag import watch_loop
from edgewright.serve.models import ServedModel
from edgewright.serve.open_files import allow_open_files
from edgewright.serve.parts import SERVICES, Parts
from edgewright.serve.registry import State
from edgewright.serve.stop_signals import Stops, stop_on_signals

# A call that gRPC has accepted may not have reached its handler when new ones are refused.
_SETTLE_S: Final = 0.05
# For so long at most a drain waits for a caller to send his message, or to take his answer.
_STUCK_S: Final = 2.0
# For so long at most new calls are sent away one by one, before gRPC takes none any more.
_SENDING_AWAY_S: Final = 2.0
# Connections to both gRPC ports by the two addresses that a name may have, and what HTTP, models,
# the store and the repository need.
_OPEN_FILES: Final = 2 * 2 * MAX_CONNECTIONS + 1024

# A compute thread that wants the interpreter from a busy event loop has it after so long. By
# Python's own 5 ms, several times a batch, cores stand idle while calls wait.
_SWITCH_S: Final = 0.0005
# Objects between collections, by generation, of which two thousand calls in flight have 100,000: by
# Python's own 700 they were looked through all the time; many more would hold up calls for longer.
_COLLECT_AFTER: Final = (5_000, 10, 10)

Waits = Callable[[], Awaitable[object]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ready:
    """What a server that answers tells of itself."""

    host: str
    port: int
    metrics_port: int
    admin_port: int | None
    ready_ms: float  # from the start of ``serve``
    models: Sequence[ServedModel]

    @classmethod
    def of(cls, server: Server, models: Sequence[ServedModel], started: float) -> Ready:
        """Now, by ``time.monotonic`` as ``started`` was."""
        ready_ms = 1000 * (time.monotonic() - started)
        ports = (server.port, server.metrics_port, server.admin_port)
        return cls(server.config.host, *ports, ready_ms, models)


class Server(Parts):
    """``start`` answers probes, ``load`` the calls, ``drain`` neither.

    Built on a running event loop. Use it as an asynchronous context manager, so that nothing
    outlives a failure.
    """

    def __init__(self, config: ServeConfig) -> None:
        """Bind the ports.

        Raises:
            ConfigError, BackendUnavailableError, FeedbackStoreError: as ``Parts``.
        """
        super().__init__(config)
        self._lag: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answer probes: alive, not ready."""
        warn_of_untested()
        await self._http.start()
        self._security.watch()
        self.health.set(SERVICES, serving=False)
        observe = self.instruments.event_loop_lag_seconds.observe
        self._lag = asyncio.create_task(watch_loop(observe))
        if not self._shares_port:
            self._start_rpc()

    def _start_rpc(self) -> None:
        self._rpc.start()
        # Not to be cancelled, which would cancel the server's own end.
        self._rpc_end = asyncio.create_task(self._rpc.wait_for_termination())

    async def lost(self) -> NotReadyError:
        """Return when nothing but another process can answer calls, with the reason."""
        assert self._rpc_end is not None  # it has loaded
        gpu_lost = self.batcher.gpu_lost
        await asyncio.wait((gpu_lost, self._rpc_end), return_when=asyncio.FIRST_COMPLETED)
        if self.registry.state is State.DRAINING:  # which ends the gRPC server too
            await asyncio.wait((gpu_lost,))
        if gpu_lost.done():
            return gpu_lost.result()
        return NotReadyError(
            "calls by gRPC can be taken no longer, for the reason above in the log; "
            "start the server again"
        )

    async def load(self, before_answers: Waits | None = None) -> list[ServedModel]:
        """Load what the repository says of every model, then answer calls and follow it.

        ``before_answers`` is waited for in between.

        Raises:
            ModelNotFoundError: the repository is missing or empty.
            IntegrityError, BackendUnavailableError: as ``load_model``.
        """
        await self.follower.start()
        if before_answers is not None:
            await before_answers()
        if self._shares_port:  # not before: calls that come here would be lost to the others
            self._bound()
            self._start_rpc()
        self._answer_calls()
        if self.config.watch_seconds:
            self._watching = asyncio.create_task(self.follower.watch(self.config.watch_seconds))
        if self._admin is not None:
            await self._admin.start()
        return [each.served for each in self.registry.entries() if each.served is not None]

    async def drain(self) -> bool:
        """Say "not ready", refuse new calls, finish those in flight, stop.

        Whether every call was answered within the grace, but for those whose callers send no
        message or take no answer; those that were not are ended.
        """
        self.registry.state = State.DRAINING
        self.instruments.ready.set(0)
        self.health.set_all(serving=False)
        await self._stop_following()
        await asyncio.sleep(self.config.drain_delay_s)
        self.feedback.drain()
        self.predictions.drain()
        self._api.drain()
        self._edge.drain()
        begun = time.monotonic()
        await self._send_away(begun + min(_SENDING_AWAY_S, self.config.grace_s / 2))
        # No timer of gRPC's: what it ended could not be counted below, and were it to run out just
        # as the other ``stop`` ends, gRPC would cancel the calls of a server that it has freed.
        stopped = asyncio.create_task(self._rpc.stop(math.inf))
        # Streams of health and reflection end when their callers like, so they are not waited for.
        stuck_s = min(_STUCK_S, self.config.grace_s / 2)
        while time.monotonic() < begun + self.config.grace_s and await self._busy():
            self.transfers.end_stuck(stuck_s, begun)
        cut_off = self.in_flight
        if cut_off:
            log.warning(
                "%d calls were not finished within --grace (%g s); they are ended",
                cut_off,
                self.config.grace_s,
            )
            await self._http.stop()
        # What is still being sent would be lost with a connection that is cut off. gRPC closes it
        # once its client has told that all has come, but for streams of health and reflection.
        left_s = begun + self.config.grace_s - time.monotonic()
        await asyncio.wait((stopped,), timeout=max(0.0, min(stuck_s, left_s)))
        await self._rpc.stop(None)
        await stopped
        await self._close_queues()
        return not cut_off

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._stop_following()
        await self._security.close()
        await self._rpc.stop(None)
        await self._close_queues()
        await self._http.stop()
        if self._lag is not None:
            self._lag.cancel()
            await asyncio.gather(self._lag, return_exceptions=True)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def _close_queues(self) -> None:
        self._decoder.close()
        await self.batcher.close()
        if self.intake is not None:
            await self.intake.close()

    async def _stop_following(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._admin is not None:
            await self._admin.stop(None)
        await self.follower.close()
        self._background.close()  # last, so that nobody hears of what was given up
        await self._shadow.close()

    def _answer_calls(self) -> None:
        self.registry.state = State.READY
        self.instruments.ready.set(1)
        self.health.set_all(serving=True)

    async def _send_away(self, until: float) -> None:
        """Let calls come as long as they do, but not for ever, to be told UNAVAILABLE.

        What it has not handed over when it stops, gRPC ends with CANCELLED and no reason, which
        sends no client to another replica.
        """
        while await self._called() and time.monotonic() < until:
            pass

    async def _called(self) -> bool:
        """Whether calls come, within a moment."""
        before = self._edge.came
        await asyncio.sleep(_SETTLE_S)
        return self._edge.came > before

    async def _busy(self) -> bool:
        """Whether a call is in flight, or a message on its way, now or after a moment."""
        seen = self.in_flight or self.transfers
        await asyncio.sleep(_SETTLE_S)
        return bool(seen or self.in_flight or self.transfers)


def _set_interpreter() -> None:
    """Once, for the whole process: it is the server's."""
    # What was imported stays: a full collection over it would hold up every call for 30 ms.
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    sys.setswitchinterval(_SWITCH_S)


async def serve(
    config: ServeConfig,
    announce: Callable[[Ready], None],
    log_thread: LogThread,
    stops: Stops | None = None,
    before_answers: Waits | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT, drain, and tell whether every call was answered.

    ``announce`` is called once, when calls are answered. A signal that comes before waits for the
    model that is being loaded, and no longer. What hangs after the first signal is given up as
    ``Grace`` says; a second SIGTERM or SIGINT ends the process at once. ``stops`` takes the place
    of signals, ``before_answers`` is as in ``Server.load``.

    Raises:
        ConfigError: a port cannot be had.
        GpuLostError, NotReadyError: as ``Server.lost``; it has drained.
        ModelNotFoundError, IntegrityError, BackendUnavailableError: as ``Server.load``.
    """
    started = time.monotonic()
    grace = Grace(config, log_thread)
    stop = (stops or stop_on_signals)(grace.begin)
    allow_open_files(_OPEN_FILES)
    async with Server(config) as server:
        log_thread.dropped = server.instruments.dropped_log_lines.inc
        await server.start()
        _set_interpreter()
        stopping = asyncio.create_task(stop.wait())
        models = await _loaded(server, before_answers, stopping)
        if models is None:
            log.info("stopped before any model was ready")
            return True
        announce(Ready.of(server, models, started))
        lost = asyncio.create_task(server.lost())
        await asyncio.wait((stopping, lost), return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            log.error("%s", lost.result())
            grace.begin()
        log.info("draining: new calls are refused, those in flight are finished")
        whole = await server.drain()
    log.info("drained")
    if lost.done():
        stopping.cancel()
        raise lost.result()
    lost.cancel()
    return whole


async def _loaded(
    server: Server, before_answers: Waits | None, stopping: asyncio.Task[Any]
) -> list[ServedModel] | None:
    """As ``Server.load``; None where it is to stop before that has ended."""
    loading = asyncio.create_task(server.load(before_answers))
    await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
    if loading.done():
        return loading.result()
    loading.cancel()
    return None
