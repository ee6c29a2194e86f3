"""What a server is made of, with its ports bound: nothing of it answers yet."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection import SERVICE_NAME, aio
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from edgewright.oip.inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from edgewright.proof.host import available_cores
from edgewright.repository import Repository
from edgewright.serve.access_log import AccessLevel, AccessLog
from edgewright.serve.admin_server import AdminServer
from edgewright.serve.admin_service import AdminService
from edgewright.serve.admission import Limits, QueueLimit
from edgewright.serve.background import Background
from edgewright.serve.batching import Batcher
from edgewright.serve.begun_loads import BegunLoads
from edgewright.serve.call_edge import CallEdge
from edgewright.serve.call_observer import CallObserver
from edgewright.serve.config import ServeConfig
from edgewright.serve.feedback_intake import FeedbackIntake, open_store
from edgewright.serve.feedback_service import FeedbackService
from edgewright.serve.follower import Follower
from edgewright.serve.grpc_options import grpc_options
from edgewright.serve.health import HealthService
from edgewright.serve.http_api import HttpApi, Watched
from edgewright.serve.http_server import HttpServer
from edgewright.serve.image_decoder import ImageDecoder
from edgewright.serve.inference import Inference
from edgewright.serve.instruments import Instruments
from edgewright.serve.line import BatchLimit
from edgewright.serve.loader import AT_ONCE, Loader
from edgewright.serve.model_service import ModelService
from edgewright.serve.models import ServedModel, load_model
from edgewright.serve.oip_service import OipService
from edgewright.serve.ports import bound
from edgewright.serve.prediction_service import PredictionService
from edgewright.serve.predictor import Predictor
from edgewright.serve.preprocessors import Preprocessors
from edgewright.serve.registry import Registry, State
from edgewright.serve.rpc_server import RpcServer
from edgewright.serve.security import Security
from edgewright.serve.shadow import Shadow
from edgewright.serve.surroundings import ServerSurroundings
from edgewright.serve.trace_endpoint import open_tracing
from edgewright.serve.transfers import Transfers
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

log = logging.getLogger(__name__)


class Parts:
    """Ports, services and the compute threads; built on a running event loop."""

    def __init__(self, config: ServeConfig) -> None:
        """Open the store of feedback, read certificates and tokens, and bind both ports.

        Raises:
            ConfigError: a port cannot be had, a file is not what it must be, or the store is no
                place to write to.
            BackendUnavailableError, FeedbackStoreError: as ``FeedbackStore.open``.
        """
        self.config = config
        self.instruments = Instruments()
        self.registry = Registry()
        self.health = HealthService()
        self.transfers = Transfers()
        self._security = Security(config, self.instruments)
        self._tracing = open_tracing(config.otlp_endpoint, config.trace_sample)
        store = open_store(config.feedback)
        self._observer = self._call_observer()
        self._bind()
        self._prepare_to_compute()
        self.follower = self._follower()
        self._admin = self._admin_server()
        self.admin_port = self._admin.port if self._admin else None
        self.intake: FeedbackIntake | None = None
        if store is not None:
            self.intake = FeedbackIntake.start(store, config, self.registry, self.instruments)
        self._add_answers()
        self.instruments.watch(
            self.batcher.queue, lambda: self.in_flight, lambda: self._edge.refusals.held, config
        )

    @property
    def in_flight(self) -> int:
        """Calls being answered now, by either protocol."""
        return self._edge.in_flight + self._api.in_flight

    def is_alive(self) -> bool:
        """Whether it can still answer, now or once it has loaded."""
        answers = self.batcher.alive and not (self._rpc_end and self._rpc_end.done())
        return answers or self.registry.state is State.DRAINING

    def is_ready(self) -> bool:
        """Whether calls should be sent here."""
        return self.registry.state is State.READY and self.is_alive()

    def _call_observer(self) -> CallObserver:
        level = AccessLevel(self.config.access_log)
        access_log = None if level is AccessLevel.OFF else AccessLog(level)
        return CallObserver(self.instruments, access_log, self._tracing)

    def _bind(self) -> None:
        """Both ports; that of gRPC later, where other processes share it."""
        self._edge = CallEdge(
            self._observer,
            self._security.callers,
            lambda waiting, coming: self.batcher.queue.refusal(waiting, coming),
            self.transfers,
        )
        self._shares_port = self.config.sharing > 1
        options = grpc_options(
            self.config.max_message_mb * MIB,
            self.config.max_wait_s,
            shares_port=self._shares_port,
            max_age_s=self.config.max_connection_age_s,
        )
        self._rpc = RpcServer(self._edge, options)
        self._rpc_end: asyncio.Task[Any] | None = None  # of a server that has started
        self.port = self.config.port if self._shares_port else self._bound()
        self._http = self._http_server()
        self.metrics_port = self._http.port

    def _prepare_to_compute(self) -> None:
        """Queues, and the threads that drain them."""
        self.batcher = self._batcher()
        self.batcher.queue.on_leave = self._edge.let_in
        self._cores = max(1, available_cores() // self.config.sharing)
        self._decoder = ImageDecoder(self.batcher.queue, self._cores, self.instruments.decoded)
        self._background = Background(AT_ONCE)

    def _add_answers(self) -> None:
        """What answers calls, to what is bound."""
        self.feedback = FeedbackService(self.intake, self.instruments, self._observer)
        self._shadow = self._shadow_calls()
        predictor = self._predictor()
        self.predictions = PredictionService(predictor, self.instruments, self._observer)
        self._add_services(predictor)
        watched = Watched(self.instruments.registry, self.is_alive, self.is_ready)
        self._api = HttpApi(predictor, watched, self._observer, self._security.callers)

    def _bound(self) -> int:
        return bound(
            self.config.host,
            self.config.port,
            "--port",
            lambda address: self._security.add_port(self._rpc, address),
            shared=self._shares_port,
        )

    def _http_server(self) -> HttpServer:
        return HttpServer(
            self.config.host,
            self.config.metrics_port,
            lambda request: self._api.answer(request),
            max_body_bytes=self.config.max_message_mb * MIB,
            context=lambda: self._security.context,
            transfers=self.transfers,
            reserved=self._shares_port,
        )

    def _batcher(self) -> Batcher:
        config = self.config
        return Batcher(
            batch=BatchLimit(config.max_batch, config.batch_tokens),
            limit=QueueLimit(config.queue_size, config.max_wait_s, config.max_rows_per_caller),
            observer=self.instruments,
        )

    def _shadow_calls(self) -> Shadow:
        queue = self.batcher.queue
        return Shadow(self.registry, self.instruments.shadow, lambda: queue.rows > 0)

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
        oip = OipService(Inference(predictor), alive=self.is_alive, ready=self.is_ready)
        # Generated code has no types.
        add_PredictionServiceServicer_to_server(self.predictions, self._edge)  # type: ignore[no-untyped-call]
        add_GRPCInferenceServiceServicer_to_server(oip, self._edge)  # type: ignore[no-untyped-call]
        models = ModelService(self.registry, self.follower.problems)
        add_ModelServiceServicer_to_server(models, self._edge)  # type: ignore[no-untyped-call]
        add_FeedbackServiceServicer_to_server(self.feedback, self._edge)  # type: ignore[no-untyped-call]
        add_HealthServicer_to_server(self.health, self._edge)
        if self.config.reflection:
            names = [*SERVICES, HEALTH_SERVICE, SERVICE_NAME]
            add_ServerReflectionServicer_to_server(aio.ReflectionServicer(names), self._edge)

    def _admin_server(self) -> AdminServer | None:
        config = self.config
        if config.admin_port is None:
            return None
        repository = Repository(config.repository)
        service = AdminService(repository, self.registry, self.follower)
        edge = CallEdge(self._observer, self._security.callers)
        return AdminServer(
            service, edge, config.admin_host, config.admin_port, self._security.add_port
        )

    def _follower(self) -> Follower:
        repository = Repository(self.config.repository)
        around = ServerSurroundings(
            self.registry, self.batcher.queue, self.health, self.instruments
        )
        load = partial(self._load_one, repository, Preprocessors())
        policy = VersionPolicy.parse(self.config.versions)
        counts = self.instruments.repository
        loader = Loader(repository, load, counts.refused)
        return Follower(repository, self.registry, loader, policy, around, counts)

    def _load_one(
        self, repository: Repository, preprocessors: Preprocessors, name: str, version: int
    ) -> ServedModel:
        config = self.config
        with self._loading(repository.path / name / str(version)) as background:
            model = load_model(
                repository,
                name,
                version,
                threads=config.threads,
                instances=config.instances,
                cores=self._cores,
                max_batch=config.max_batch,
                batch_tokens=config.batch_tokens,
                host=config.host_options,
                preprocessors=preprocessors,
                background=background,
            )
        self.batcher.grow_to(model.instances)
        return model

    @contextmanager
    def _loading(self, bundle: Path) -> Iterator[Background | None]:
        """What proves it beside those who answer; None where nobody does yet, and it is safe."""
        if self.registry.state is not State.LOADING:
            with self.batcher.cutting_in():
                yield self._background
            return
        with BegunLoads(self.config.state_dir).load(bundle) as was_cut_off:
            if not was_cut_off:
                yield None
                return
            log.warning(
                "a server ended while it loaded %s, so another process proves that first", bundle
            )
            # Nobody answers yet who could feel it, and who was killed for being slow must not be
            # slower still: it has a share of the cores from the start.
            self._background.no_core_idle_until = math.inf
            try:
                yield self._background
            finally:
                self._background.no_core_idle_until = 0.0
