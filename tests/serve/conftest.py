from __future__ import annotations

import asyncio
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest

from edgewright.preprocess import TokenRow
from edgewright.repository import Repository
from edgewright.serve.background import Background
from edgewright.serve.call_record import current_call
from edgewright.serve.config import ServeConfig
from edgewright.serve.event_loop import new_event_loop
from edgewright.serve.models import ServedModel
from edgewright.serve.rpc_server import Method
from edgewright.serve.server import Server
from edgewright.v1.model_pb2_grpc import ModelServiceStub
from edgewright.v1.prediction_pb2 import ClassifyTextRequest, ClassifyTextResponse
from edgewright.v1.prediction_pb2_grpc import PredictionServiceStub

from . import held
from .bundles import Recipe, make_bundle
from .databases import Postgres
from .families import Family
from .families import Start as StartTwo
from .processes import FREE_PORTS, Process, Start
from .rpc_fakes import Methods, RunningRpc

T = TypeVar("T")


class LoopThread:
    """An event loop in a thread: servers run on it while tests call them from outside."""

    def __init__(self, make: Callable[[], asyncio.AbstractEventLoop] = new_event_loop) -> None:
        self.loop = make()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Late:
    """Holds an event loop while it is entered."""

    def __init__(self, loop: LoopThread) -> None:
        self._loop = loop.loop
        self._held, self._go_on = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        self._loop.call_soon_threadsafe(self._hold)
        assert self._held.wait(30)

    def __exit__(self, *_: object) -> None:
        self._go_on.set()

    def _hold(self) -> None:
        self._held.set()
        assert self._go_on.wait(60)


@dataclass
class Running:
    """A started server and a channel to it."""

    server: Server
    channel: grpc.Channel
    loop: LoopThread

    @property
    def predictions(self) -> PredictionServiceStub:
        return PredictionServiceStub(self.channel)

    @property
    def models(self) -> ModelServiceStub:
        return ModelServiceStub(self.channel)

    def classify(
        self, *texts: str, model: str = "", version: int = 0, top_k: int = 0, timeout: float = 30
    ) -> ClassifyTextResponse:
        request = self.request(*texts, model=model, version=version, top_k=top_k)
        return self.predictions.ClassifyText(request, timeout=timeout)

    def request(self, *texts: str, **fields: Any) -> ClassifyTextRequest:
        return ClassifyTextRequest(texts=texts, **fields)

    def load(self) -> None:
        self.loop.run(self.server.load())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name with at least these labels."""
        return sum(
            sample.value
            for metric in self.server.instruments.registry.collect()
            for sample in metric.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


Launch = Callable[..., Running]
QUIET = {
    "host": "127.0.0.1", "port": 0, "metrics_port": 0, "watch_seconds": 0.0,
    "max_wait_s": 600.0,  # nobody is refused for how slowly this machine computes
}  # fmt: skip


class Gate:
    """Holds every run of a served model until it is opened, and counts the rows of each run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[int] = []
        self.open = threading.Event()
        self.entered = threading.Event()
        plain = ServedModel.scores_with

        def scores(model: ServedModel, rows: Sequence[TokenRow], extras: Sequence[str]) -> Any:
            self.runs.append(len(rows))
            self.entered.set()
            assert self.open.wait(30)
            return plain(model, rows, extras)

        monkeypatch.setattr(ServedModel, "scores_with", scores)


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what another thread does; the test fails if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def background() -> Iterator[Background]:
    background = Background(1)
    yield background
    background.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Gate]:
    """Call it once the server is ready: the warm-up would wait at it too."""
    return lambda: Gate(monkeypatch)


@pytest.fixture(scope="session")
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """One model, "news", version 1. Not to be changed."""
    path = tmp_path_factory.mktemp("repository")
    Repository(path).publish(bundle, "news")
    return path


@pytest.fixture
def launch(loop: LoopThread, repository: Path) -> Iterator[Launch]:
    """Starts servers; ``load=False`` leaves one answering probes alone."""
    running: list[Running] = []

    def start(path: Path = repository, *, load: bool = True, **options: Any) -> Running:
        config = ServeConfig(path, **{**QUIET, **options})

        async def build() -> Server:
            server = Server(config)
            await server.start()
            return server

        server = loop.run(build())
        channel = grpc.insecure_channel(
            f"127.0.0.1:{server.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        running.append(Running(server, channel, loop))
        if load:
            running[-1].load()
        return running[-1]

    yield start
    for each in running:
        each.channel.close()
        loop.run(each.server.__aexit__(None, None, None))


@pytest.fixture
def serve(loop: LoopThread) -> Iterator[Callable[..., RunningRpc]]:
    """Starts servers of calls alone: ``serve(echo=echo)`` has that method."""
    running: list[RunningRpc] = []

    def start(options: Sequence[tuple[str, Any]] = (), **methods: Method) -> RunningRpc:
        running.append(RunningRpc(loop, Methods(methods), options))
        return running[-1]

    yield start
    for each in running:
        each.close()


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Path]:
    """Makes a repository of models from recipes: ``publish(news=Recipe())``."""

    def build(**recipes: Recipe) -> Path:
        for name, recipe in recipes.items():
            bundle = make_bundle(tmp_path / f"bundle-{name}", recipe)
            Repository(tmp_path / "repository").publish(bundle, name)
        return tmp_path / "repository"

    return build


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of the tests' own."""
    with Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'feedback.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(autouse=True, scope="session")
def hangup_is_heard() -> Iterator[None]:
    """By the servers of these tests, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True)
def interpreter_is_left_as_it_was() -> Iterator[None]:
    """A server that is run in this process sets it up for itself."""
    collects_after, switches_after = gc.get_threshold(), sys.getswitchinterval()
    yield
    gc.unfreeze()
    gc.set_threshold(*collects_after)
    sys.setswitchinterval(switches_after)


@pytest.fixture(autouse=True)
def calls_stay_in_their_tasks() -> Iterator[None]:
    """One that outlived its test would be taken for the call that the next tests answer."""
    yield
    outlived = current_call.get()
    current_call.set(None)
    assert outlived is None


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts server processes: ``start(repository, *options)``, as ``Process`` says."""
    processes: list[Process] = []

    def begin(*arguments: str, **settings: Any) -> Process:
        processes.append(Process(*arguments, **settings))
        return processes[-1]

    yield begin
    for process in processes:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.communicate()


@pytest.fixture
def start_two() -> Iterator[StartTwo]:
    """Servers of two processes; ``gate`` holds the runs of their models, of ``only`` one.

    Without ``json``, which ``announced`` reads, the log has more than warnings.
    """
    families: list[Family] = []

    def begin(
        repository: Path,
        *options: str,
        json: bool = True,
        gate: Path | None = None,
        only: int | None = None,
        **settings: Any,
    ) -> Family:
        arguments = (str(repository), "--processes", "2", *FREE_PORTS, *options)
        settings |= {} if gate is None else {"GATE": str(gate), "without": held}
        settings |= {} if only is None else {"GATE_ONLY": f"serve-{only}"}
        families.append(Family(*arguments, *(["--json"] if json else []), **settings))
        return families[-1]

    yield begin
    for family in families:
        family.end()
