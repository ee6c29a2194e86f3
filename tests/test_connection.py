"""Reaching a server, or saying why not: targets, ports, replicas, TLS, limits."""

from __future__ import annotations

import asyncio
import http.server
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from both_clients import KINDS, Clock, ask, free_port
from fake_server import FakeServer

from edgewright.client import AsyncClient, Client, Tls
from edgewright.errors import (
    ConfigError,
    NotReadyError,
    ServiceError,
)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_server_that_is_not_up_is_named_with_the_command_that_starts_it(kind: str) -> None:
    port = free_port()
    clock = Clock()
    with pytest.raises(NotReadyError) as caught:
        ask(kind, f"127.0.0.1:{port}", "classify", "x", clock=clock)
    assert f"no server answers at 127.0.0.1:{port}" in str(caught.value)
    assert f"`edgewright serve REPOSITORY --port {port}`" in str(caught.value)
    assert len(clock.slept) == 4


def test_a_host_that_does_not_exist_is_told_as_such(kind: str) -> None:
    with pytest.raises(NotReadyError, match=r"no host goes by the name in nowhere\.invalid:8001"):
        ask(kind, "nowhere.invalid:8001", "classify", "x", clock=Clock(), retries=0)


class Quiet(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def http_port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield listener.server_port
        listener.shutdown()
        thread.join()


def test_the_metrics_port_is_recognised(kind: str) -> None:
    with http_port() as port, pytest.raises(NotReadyError, match=r"not in gRPC.*--port"):
        ask(kind, f"127.0.0.1:{port}", "classify", "x", retries=0)


def test_another_grpc_server_is_recognised(kind: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        stranger = grpc.server(pool)
        port = stranger.add_insecure_port("127.0.0.1:0")
        stranger.start()
        with pytest.raises(ServiceError, match="is a gRPC server, but not one of edgewright"):
            ask(kind, f"127.0.0.1:{port}", "classify", "x")
        stranger.stop(None).wait()


def test_calls_go_round_robin_over_replicas(kind: str) -> None:
    with FakeServer() as one, FakeServer() as two:
        target = f"ipv4:{one.target},{two.target}"
        if kind == "sync":
            with Client(target) as client:
                for _ in range(50):
                    client.classify("x")
        else:

            async def run() -> None:
                async with AsyncClient(target) as client:
                    for _ in range(50):
                        await client.classify("x")

            asyncio.run(run())
    assert len(one.requests) + len(two.requests) == 50
    assert min(len(one.requests), len(two.requests)) > 10


def test_a_large_answer_needs_a_large_limit(kind: str, server: FakeServer) -> None:
    texts = ["x"] * 64
    with pytest.raises(ServiceError, match=server.target):
        ask(kind, server.target, "classify", texts, max_message_bytes=1000)
    assert len(ask(kind, server.target, "classify", texts, max_message_bytes=100_000)) == 64


@pytest.mark.parametrize(
    "target", ["", "localhost", "http://localhost:8001", "localhost:0", "localhost:99999", "a b:1"]
)
def test_a_target_that_is_no_host_and_port_is_refused(target: str) -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(ConfigError, match="HOST:PORT is expected"):
            client(target)


@pytest.mark.parametrize("target", ["[::1]:8001", "dns:///replicas:8001", "unix:/run/edgewright"])
def test_grpc_names_are_taken(target: str) -> None:
    Client(target).close()


def test_every_fault_of_the_options_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Client("x", timeout_s=0, retries=-1, max_message_bytes=0)
    assert len(caught.value.faults) == 4
    with pytest.raises(ConfigError) as caught:
        Tls(roots=tmp_path / "none.pem", certificate=Path(__file__))
    assert len(caught.value.faults) == 2
    with Client("localhost:1") as client, pytest.raises(ConfigError, match="timeout_s"):
        client.classify("x", timeout_s=float("inf"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", key, "-out", certificate,
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


def test_tls_trusts_the_roots_it_is_given_and_no_others(
    kind: str, certificate: tuple[Path, Path]
) -> None:
    public, private = (path.read_bytes() for path in certificate)
    credentials = grpc.ssl_server_credentials([(private, public)])
    with FakeServer(credentials=credentials) as server:
        tls = Tls(roots=certificate[0])
        (answer,) = ask(kind, server.target, "classify", "United won", tls=tls)
        assert answer.label == "sport"
        with pytest.raises(NotReadyError, match="TLS handshake"):
            ask(kind, server.target, "classify", "x", tls=Tls(), retries=0)
