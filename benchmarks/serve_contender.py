"""Who serves, in which environment, and by which of its settings."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.environment import OwnEnvironment
from benchmarks.serve_protocol import BENTOML, LITSERVE, TENSORS, TYPED, Protocol

OURS: Final = "edgewright"
# The same for all: what is compared is the server.
_RUNTIME: Final = tuple(f"{name}=={version(name)}" for name in ("onnxruntime", "tokenizers"))


@dataclass(frozen=True)
class Setting:
    """One way to run a server; ``name`` says it in a few letters."""

    workers: int = 1
    threads: int = 1
    batch: int = 16
    delay_ms: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As "2 x 1 threads, batch 16, 1 ms"."""
        more = "".join(f", {key} {value}" for key, value in self.extra.items())
        threads = f"{self.workers} x {self.threads} thread(s)"
        return f"{threads}, batch {self.batch}, {self.delay_ms:g} ms{more}"


@dataclass(frozen=True)
class Place:
    """Where a server runs: its interpreter, its ports, what edgewright serves, and a folder."""

    python: Path
    port: int
    http_port: int
    metrics_port: int
    repository: Path
    folder: Path


@dataclass(frozen=True)
class Contender:
    """A server.

    Attributes:
        settings: those that are tried; the first is taken where nothing was.
        command: that starts it at a place.
    """

    name: str
    title: str
    environment: OwnEnvironment
    protocol: Protocol
    settings: tuple[Setting, ...]
    command: Callable[[Place], list[str]]
    variables: Mapping[str, str] = field(default_factory=dict)


def _module(name: str) -> Callable[[Place], list[str]]:
    return lambda place: [str(place.python), "-m", f"benchmarks.servers.{name}"]


def _bentoml(place: Place) -> list[str]:
    serve = ["serve", "benchmarks.servers.bentoml_server:Texts", "--host", "127.0.0.1"]
    return [str(place.python), "-m", "bentoml", *serve, "--port", str(place.port)]


def _edgewright(place: Place) -> list[str]:
    """As a user types it; the rest is by default."""
    folder = place.folder
    ports = ["--port", str(place.port), "--metrics-port", str(place.http_port)]
    return [
        str(place.python), "-m", "edgewright", "serve", str(place.repository), *ports,
        "--host", "127.0.0.1", "--state-dir", str(folder / "state"),
    ]  # fmt: skip


def contenders() -> dict[str, Contender]:
    """Every one by name, ours first."""
    every = (
        Contender(
            OURS, "edgewright",
            OwnEnvironment(OURS, ("edgewright[serve]",), "import edgewright.serve.server"),
            TYPED, (Setting(),), _edgewright,
        ),
        Contender(
            "litserve", "LitServe 0.2.19",
            OwnEnvironment("litserve", ("litserve==0.2.19", *_RUNTIME), "import litserve"),
            LITSERVE,
            (
                Setting(2), Setting(1), Setting(1, threads=2), Setting(2, batch=32, delay_ms=5),
                Setting(2, extra={"server": {"fast_queue": True}}),
                Setting(2, extra={"run": {"num_api_servers": 1}}),
            ),
            _module("litserve_server"),
        ),
        Contender(
            "bentoml", "BentoML 1.4.40",
            OwnEnvironment("bentoml", ("bentoml==1.4.40", *_RUNTIME), "import bentoml"),
            BENTOML,
            (
                Setting(2, batch=32, delay_ms=0), Setting(1, batch=32, delay_ms=0),
                Setting(1, threads=2, batch=32, delay_ms=0),
                Setting(2, batch=32, delay_ms=0, extra={"batchable": False}),
                Setting(2, batch=32, delay_ms=0, extra={"max_latency_ms": 100}),
            ),
            _bentoml,
        ),
        Contender(
            "mlserver", "MLServer 1.7.1",
            OwnEnvironment(
                "mlserver",
                # Its workers ask for an event loop that later uvloops no longer make by themselves.
                ("mlserver==1.7.1", "uvloop==0.21.0", *_RUNTIME),
                "import mlserver",
            ),
            TENSORS,
            (
                Setting(2), Setting(1), Setting(0), Setting(0, threads=2),
                Setting(2, batch=32, delay_ms=5),
            ),
            _module("mlserver_server"),
        ),
        Contender(
            "pytriton", "PyTriton 0.7.0",
            OwnEnvironment("pytriton", ("nvidia-pytriton==0.7.0", *_RUNTIME), "import pytriton"),
            TENSORS,
            (
                Setting(2, delay_ms=0), Setting(1, delay_ms=0), Setting(1, threads=2, delay_ms=0),
                Setting(2), Setting(2, batch=32, delay_ms=5),
            ),
            _module("pytriton_server"),
            # Triton's stub of Python looks for libpython there.
            {"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR"))},
        ),
    )  # fmt: skip
    return {each.name: each for each in every}
