"""One server process: what it is made of, and its life from bound ports to a drained exit."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Final

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection import SERVICE_NAME, enable_server_reflection

from edgewright.oip.inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from edgewright.proof.host import available_cores
from edgewright.repository import Repository
from edgewright.serve.access_log import AccessLevel, AccessLog
from edgewright.serve.admin_server import AdminServer
from edgewright.serve.admin_service import AdminService
from edgewright.serve.admission import Limits, QueueLimit
from edgewright.serve.batching import Batcher
from edgewright.serve.call_observer import CallObserver
from edgewright.serve.config import ServeConfig
from edgewright.serve.feedback_intake import FeedbackIntake, open_store
from edgewright.serve.feedback_service import FeedbackService
from edgewright.serve.follower import Follower
from edgewright.serve.grace import Grace
from edgewright.serve.grpc_options import grpc_options
from edgewright.serve.health import HealthService
from edgewright.serve.http_api import HttpApi, Watched
from edgewright.serve.http_server import HttpServer
from edgewright.serve.image_decoder import ImageDecoder
from edgewright.serve.inference import Inference
from edgewright.serve.instruments import Instruments
from edgewright.serve.interceptors import CallEdge
from edgewright.serve.line import BatchLimit
from edgewright.serve.loader import Loader
from edgewright.serve.logs import LogThread
from edgewright.serve.loop_lag import watch_loop
from edgewright.serve.methods_by_name import MethodsByName
from edgewright.serve.model_service import ModelService
from edgewright.serve.models import ServedModel, load_model
from edgewright.serve.oip_service import OipService
from edgewright.serve.ports import bound
from edgewright.serve.prediction_service import PredictionService
from edgewright.serve.predictor import Predictor
from edgewright.serve.preprocessors import Preprocessors
from edgewright.serve.registry import Registry, State
from edgewright.serve.security import Security
from edgewright.serve.shadow import Shadow
from edgewright.serve.stop_signals import Stops, stop_on_signals
from edgewright.serve.surroundings import ServerSurroundings
from edgewright.serve.trace_endpoint import open_tracing
from edgewright.serve.version_policy import VersionPolicy
from edgewright.v1.feedback_pb2_grpc import add_FeedbackServiceServicer_to_server
from edgewright.v1.model_pb2_grpc import add_ModelServiceServicer_to_server
from edgewright.v1.prediction_pb2_grpc import add_PredictionServiceServicer_to_server

SERVICES: Final = (
    "edgewright.v1.PredictionService",
    "edgewright.v1.ModelService",
    "edgewright.v1.FeedbackService",
    "inference.GRPCInferenceService",
)
HEALTH_SERVICE: Final = "grpc.health.v1.Health"
MIB: Final = 1 << 20
# A call that gRPC has accepted may not have reached its handler when new ones are refused.
_SETTLE_S: Final = 0.05

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


class Server:
    """Ports, services and the compute threads; built on a running event loop.

    ``start`` answers probes, ``load`` the calls, ``drain`` neither. Use it as an asynchronous
    context manager, so that nothing outlives a failure.
    """

    def __init__(self, config: ServeConfig) -> None:
        """Open the store of feedback, read certificates and tokens, and bind both ports.

        Raises:
            ConfigError: a port cannot be had, a file is not what it must be, or the store is no
                place to write to.
            BackendUnavailableError, FeedbackStoreError: as ``FeedbackStore.open``.
        """
        self.config = config
        self.instruments = Instruments()
        self._security = Security(config, self.instruments)
        self._tracing = open_tracing(config.otlp_endpoint, config.trace_sample)
        store = open_store(config.feedback)
        self.registry = Registry()
        self.health = HealthService()
        self._lag: asyncio.Task[None] | None = None
        level = AccessLevel(config.access_log)
        access_log = None if level is AccessLevel.OFF else AccessLog(level)
        observer = CallObserver(self.instruments, access_log, self._tracing)
        callers = self._security.callers
        self._edge = CallEdge(observer, callers, lambda: self.batcher.queue.refusal())
        self._shares_port = config.sharing > 1
        options = grpc_options(config.max_message_mb * MIB, shares_port=self._shares_port)
        self._rpc = grpc.aio.server(interceptors=[self._edge], options=options)
        self.port = config.port if self._shares_port else self._bound()
        self._http = HttpServer(
            config.host,
            config.metrics_port,
            lambda request: self._api.answer(request),
            max_body_bytes=config.max_message_mb * MIB,
            context=self._security.context,
            reserved=self._shares_port,
        )
        self.metrics_port = self._http.port
        self.batcher = Batcher(
            batch=BatchLimit(config.max_batch, config.batch_tokens),
            limit=QueueLimit(config.queue_size, config.max_wait_s),
            observer=self.instruments,
        )
        self._cores = max(1, available_cores() // config.sharing)
        self._decoder = ImageDecoder(self.batcher.queue, self._cores, self.instruments.decoded)
        self.follower = self._follower()
        self._watching: asyncio.Task[None] | None = None
        self._admin = self._admin_server(CallEdge(observer, callers))
        self.admin_port = self._admin.port if self._admin else None
        self.intake: FeedbackIntake | None = None
        if store is not None:
            self.intake = FeedbackIntake.start(store, config, self.registry, self.instruments)
        self.feedback = FeedbackService(self.intake, self.instruments)
        self.instruments.watch(self.batcher.queue, lambda: self.in_flight, config)
        self._shadow = Shadow(
            self.registry, self.instruments.shadow, lambda: self.batcher.queue.rows > 0
        )
        predictor = self._predictor()
        self._add_services(predictor)
        watched = Watched(self.instruments.registry, self.is_alive, self.is_ready)
        self._api = HttpApi(predictor, watched, observer, callers)

    @property
    def in_flight(self) -> int:
        """Calls being answered now, by either protocol."""
        return self._edge.in_flight + self._api.in_flight

    def is_alive(self) -> bool:
        """Whether it can still answer, now or once it has loaded."""
        return self.batcher.alive or self.registry.state is State.DRAINING

    def is_ready(self) -> bool:
        """Whether calls should be sent here."""
        return self.registry.state is State.READY and self.batcher.alive

    async def start(self) -> None:
        """Answer probes: alive, not ready."""
        await self._http.start()
        self._security.watch(self._http.renew)
        self.health.set(SERVICES, serving=False)
        observe = self.instruments.event_loop_lag_seconds.observe
        self._lag = asyncio.create_task(watch_loop(observe))
        if not self._shares_port:
            await self._rpc.start()

    async def load(self) -> list[ServedModel]:
        """Load what the repository says of every model, then answer calls and follow it.

        Raises:
            ModelNotFoundError: the repository is missing or empty.
            IntegrityError, BackendUnavailableError: as ``load_model``.
        """
        await self.follower.start()
        if self._shares_port:  # not before: calls that come here would be lost to the others
            self._bound()
            await self._rpc.start()
        self._answer_calls()
        if self.config.watch_seconds:
            self._watching = asyncio.create_task(self.follower.watch(self.config.watch_seconds))
        if self._admin is not None:
            await self._admin.start()
        return [each.served for each in self.registry.entries() if each.served is not None]

    async def drain(self) -> bool:
        """Say "not ready", refuse new calls, finish those in flight, stop.

        Whether every call was answered within the grace; those that were not are ended.
        """
        self.registry.state = State.DRAINING
        self.instruments.ready.set(0)
        self.health.set_all(serving=False)
        await self._stop_following()
        await asyncio.sleep(self.config.drain_delay_s)
        self.feedback.drain()
        self.predictions.drain()
        self._api.drain()
        # No timer of gRPC's: what it ended could not be counted below, and were it to run out just
        # as the other ``stop`` ends, gRPC would cancel the calls of a server that it has freed.
        stopped = asyncio.create_task(self._rpc.stop(math.inf))
        # Streams of health and reflection end when their callers like, so they are not waited for.
        end = time.monotonic() + self.config.grace_s
        while time.monotonic() < end and await self._busy():
            pass
        cut_off = self.in_flight
        if cut_off:
            log.warning(
                "%d calls were not finished within --grace (%g s); they are ended",
                cut_off,
                self.config.grace_s,
            )
            await self._http.stop()
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

    def _bound(self) -> int:
        return bound(
            self.config.host,
            self.config.port,
            "--port",
            lambda address: self._security.add_port(self._rpc, address),
            shared=self._shares_port,
        )

    def _predictor(self) -> Predictor:
        return Predictor(
            self.registry,
            self.batcher,
            Limits(self.config.max_texts, self.config.max_text_chars),
            self.instruments,
            self._decoder,
            self.intake.log if self.intake else None,
            self._shadow,
        )

    def _add_services(self, predictor: Predictor) -> None:
        self.predictions = PredictionService(predictor)
        oip = OipService(Inference(predictor), alive=self.is_alive, ready=self.is_ready)
        # Generated code has no types.
        rpc = MethodsByName(self._rpc)
        add_PredictionServiceServicer_to_server(self.predictions, rpc)  # type: ignore[no-untyped-call]
        add_GRPCInferenceServiceServicer_to_server(oip, rpc)  # type: ignore[no-untyped-call]
        models = ModelService(self.registry, self.follower.problems)
        add_ModelServiceServicer_to_server(models, rpc)  # type: ignore[no-untyped-call]
        add_FeedbackServiceServicer_to_server(self.feedback, rpc)  # type: ignore[no-untyped-call]
        add_HealthServicer_to_server(self.health, rpc)
        if self.config.reflection:
            enable_server_reflection([*SERVICES, HEALTH_SERVICE, SERVICE_NAME], self._rpc)

    def _admin_server(self, edge: CallEdge) -> AdminServer | None:
        config = self.config
        if config.admin_port is None:
            return None
        repository = Repository(config.repository)
        service = AdminService(repository, self.registry, self.follower)
        return AdminServer(
            service, edge, config.admin_host, config.admin_port, self._security.add_port
        )

    def _follower(self) -> Follower:
        repository = Repository(self.config.repository)
        around = ServerSurroundings(self.registry, self.batcher, self.health, self.instruments)
        load = partial(self._load_one, repository, Preprocessors())
        policy = VersionPolicy.parse(self.config.versions)
        counts = self.instruments.repository
        loader = Loader(repository, load, counts.refused)
        return Follower(repository, self.registry, loader, policy, around, counts)

    def _load_one(
        self, repository: Repository, preprocessors: Preprocessors, name: str, version: int
    ) -> ServedModel:
        config = self.config
        return load_model(
            repository,
            name,
            version,
            threads=config.threads,
            instances=config.instances,
            cores=self._cores,
            max_batch=config.max_batch,
            host=config.host_options,
            preprocessors=preprocessors,
        )

    async def _stop_following(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._admin is not None:
            await self._admin.stop(None)
        await self.follower.close()
        await self._shadow.close()

    def _answer_calls(self) -> None:
        self.registry.state = State.READY
        self.instruments.ready.set(1)
        self.health.set_all(serving=True)

    async def _busy(self) -> bool:
        """Whether a call is in flight now or after a moment."""
        seen = self.in_flight
        await asyncio.sleep(_SETTLE_S)
        return bool(seen or self.in_flight)


async def serve(
    config: ServeConfig,
    announce: Callable[[Ready], None],
    log_thread: LogThread,
    stops: Stops | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT, drain, and tell whether every call was answered.

    ``announce`` is called once, when calls are answered. A signal that comes before waits for the
    model that is being loaded, and no longer. What hangs after the first signal is given up as
    ``Grace`` says; a second signal ends the process at once. ``stops`` takes the place of signals.

    Raises:
        ConfigError: a port cannot be had.
        ModelNotFoundError, IntegrityError, BackendUnavailableError: as ``Server.load``.
    """
    started = time.monotonic()
    stop = (stops or stop_on_signals)(Grace(config, log_thread).begin)
    async with Server(config) as server:
        log_thread.dropped = server.instruments.dropped_log_lines.inc
        await server.start()
        # What was imported stays: a full collection over it would hold up every call for 30 ms.
        gc.freeze()
        loading = asyncio.create_task(server.load())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            loading.cancel()
            log.info("stopped before any model was ready")
            return True
        models = loading.result()
        ready_ms = 1000 * (time.monotonic() - started)
        ports = (server.port, server.metrics_port, server.admin_port)
        announce(Ready(config.host, *ports, ready_ms, models))
        await stopping
        log.info("draining: new calls are refused, those in flight are finished")
        whole = await server.drain()
    log.info("drained")
    return whole
