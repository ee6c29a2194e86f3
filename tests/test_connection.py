"""Reaching a server, or saying why not: targets, ports, replicas, TLS, limits."""

from __future__ import annotations

import asyncio
import http.server
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from both_clients import KINDS, Clock, ask
from cryptography.hazmat.primitives import serialization
from fake_server import FakeServer
from free_ports import silent_port

from edgewright.client import AsyncClient, Client, Tls
from edgewright.errors import (
    ConfigError,
    NotReadyError,
    PermissionDeniedError,
    ServiceError,
    UnauthenticatedError,
)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_server_that_is_not_up_is_named_with_the_command_that_starts_it(kind: str) -> None:
    clock = Clock()
    with silent_port() as port, pytest.raises(NotReadyError) as caught:
        ask(kind, f"127.0.0.1:{port}", "classify", "x", clock=clock)
    assert f"no gRPC server answers at 127.0.0.1:{port}" in str(caught.value)
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
def http_port(context: ssl.SSLContext | None = None) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as listener:
        listener.handle_error = lambda *_: None  # type: ignore[method-assign]  # a refused client
        if context is not None:
            listener.socket = context.wrap_socket(
                listener.socket, server_side=True, do_handshake_on_connect=False
            )  # it is shaken in the connection's thread
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield listener.server_port
        listener.shutdown()
        thread.join()


def test_the_metrics_port_is_recognised(kind: str) -> None:
    with http_port() as port, pytest.raises(NotReadyError, match=r"not in gRPC.*--port"):
        ask(kind, f"127.0.0.1:{port}", "classify", "x", retries=0)


def test_the_metrics_port_is_recognised_under_tls(
    kind: str, certificate: tuple[Path, Path]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    tls = Tls(roots=certificate[0])
    with http_port(context) as port, pytest.raises(NotReadyError, match=r"not in gRPC.*--port"):
        ask(kind, f"127.0.0.1:{port}", "classify", "x", retries=0, tls=tls)


def test_another_grpc_server_is_recognised(kind: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        stranger = grpc.server(pool)
        port = stranger.add_insecure_port("127.0.0.1:0")
        stranger.start()
        with pytest.raises(ServiceError, match="answers in gRPC, but not this call"):
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
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    authority.cert_pem.write_to_path(str(certificate), append=True)
    return certificate, key


def test_files_of_tls_that_hold_something_else_are_named(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    own, key = certificate
    other, locked = tmp_path / "other.key", tmp_path / "locked.key"
    other.write_bytes(trustme.CA().private_key_pem.bytes())
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match=rf"{other} holds no certificate in PEM"):
        Tls(roots=other)
    for not_its_key in (other, locked, own):
        with pytest.raises(ConfigError, match=rf"{own} and {not_its_key} are no certificate and"):
            Tls(roots=own, certificate=own, key=not_its_key)
    assert Tls(own, own, key).credentials() is not None


def test_a_file_of_tls_that_has_gone_before_the_first_call_is_named(
    kind: str, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    roots = tmp_path / "ca.pem"
    roots.write_bytes(certificate[0].read_bytes())
    tls = Tls(roots=roots)
    roots.unlink()
    with pytest.raises(ConfigError, match=rf"{roots} cannot be read"):
        ask(kind, "127.0.0.1:1", "classify", "x", tls=tls)


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


def test_a_certificate_of_another_host_is_told_as_such(kind: str, tmp_path: Path) -> None:
    authority, roots = trustme.CA(), tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(roots))
    issued = authority.issue_cert("elsewhere.example")
    pair = (issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
    with (
        FakeServer(credentials=grpc.ssl_server_credentials([pair])) as server,
        pytest.raises(NotReadyError, match="is of another host .* by a name that its certificate"),
    ):
        ask(kind, server.target, "classify", "x", tls=Tls(roots=roots), retries=0)


def test_a_command_has_no_lines_of_grpc_s_own_on_stderr(certificate: tuple[Path, Path]) -> None:
    public, private = (path.read_bytes() for path in certificate)
    credentials = grpc.ssl_server_credentials([(private, public)])
    command = [sys.executable, "-c", "from edgewright.cli import main; main()", "predict"]
    with FakeServer(credentials=credentials) as server:
        done = subprocess.run(
            [*command, "--target", server.target, "--tls", "--timeout", "60", "x"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 6
    assert all(line.startswith("error: the TLS handshake") for line in done.stderr.splitlines())


def test_a_server_that_wants_tls_is_told_of(kind: str, certificate: tuple[Path, Path]) -> None:
    public, private = (path.read_bytes() for path in certificate)
    credentials = grpc.ssl_server_credentials([(private, public)])
    wanted = pytest.raises(NotReadyError, match=r"does it want TLS \(--tls-ca\)")
    with FakeServer(credentials=credentials) as server, wanted:
        ask(kind, server.target, "classify", "x", retries=0)


def test_a_certificate_of_the_client_that_is_not_taken_is_asked_about(
    kind: str, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    public, private = (path.read_bytes() for path in certificate)
    others, own = trustme.CA(), tmp_path / "own.pem"
    others.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(own))
    credentials = grpc.ssl_server_credentials([(private, public)], public, True)
    tls = Tls(certificate[0], own, own)
    wanted = pytest.raises(NotReadyError, match="valid and of an authority that it trusts")
    with FakeServer(credentials=credentials) as server, wanted:
        ask(kind, server.target, "classify", "x", tls=tls, retries=0)


def test_the_token_goes_with_every_call_and_is_never_shown(kind: str, server: FakeServer) -> None:
    ask(kind, server.target, "classify", "x", token="secret")
    ask(kind, server.target, "list_models", token="secret")
    assert [each["authorization"] for each in server.metadata] == ["Bearer secret"] * 2
    ask(kind, server.target, "classify", "x")
    assert "authorization" not in server.metadata[-1]
    assert "secret" not in repr(Client(server.target, token="secret")._connection)


def test_a_token_goes_with_streams(kind: str) -> None:
    for method in ("StreamClassify", "StreamFeedback"):
        with Client("localhost:1", token="secret") as client:
            assert client._methods[method].keywords == {
                "metadata": (("authorization", "Bearer secret"),)
            }


@pytest.mark.parametrize(
    ("target", "goes"),
    [
        ("localhost:8001", True),
        ("127.0.0.1:8001", True),
        ("127.1.2.3:8001", True),
        ("[::1]:8001", True),
        ("unix:/run/edgewright", True),
        ("dns:///localhost:8001", True),
        ("ipv4:127.0.0.1:8001,127.0.0.2:8001", True),
        ("ipv4:127.0.0.1:8001,10.0.0.1:8001", False),
        ("field:8001", False),
        ("127.0.0.1.example.org:8001", False),
        ("localhost.example.org:8001", False),
        ("dns://localhost/field:8001", False),
        ("xds:///localhost.field", False),
    ],
)
def test_a_token_goes_to_another_machine_under_tls_alone(
    target: str, goes: bool, certificate: tuple[Path, Path]
) -> None:
    Client(target, token="secret", tls=Tls(roots=certificate[0])).close()
    Client(target, token="secret", token_in_clear=True).close()
    if goes:
        Client(target, token="secret").close()
        return
    with pytest.raises(ConfigError, match="without TLS everybody between here") as caught:
        Client(target, token="secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["", "two words", "line\n", "naïve"])
def test_what_is_no_token_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(ConfigError, match="printable characters") as caught:
        Client("localhost:1", token=token)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("error", [UnauthenticatedError, PermissionDeniedError])
def test_who_is_not_let_in_is_told_why_once(
    kind: str, server: FakeServer, error: type[Exception]
) -> None:
    server.failures.append(error("no"))
    with pytest.raises(error, match="no"):
        ask(kind, server.target, "classify", "x")
    assert len(server.requests) == 1
