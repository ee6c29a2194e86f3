"""TLS on both ports: whom they meet, what is told of wrong files, and renewal under way."""

from __future__ import annotations

import asyncio
import http.client
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import trustme

from edgewright.errors import ConfigError
from edgewright.serve.config import ServeConfig
from edgewright.serve.instruments import Instruments
from edgewright.serve.security import Security
from edgewright.v1.prediction_pb2 import ClassifyTextRequest
from edgewright.v1.prediction_pb2_grpc import PredictionServiceStub

from .conftest import Launch, Running

Code = grpc.StatusCode


@dataclass
class Authority:
    """A certificate authority of the test's, and the files that it writes to ``folder``."""

    folder: Path
    ca: trustme.CA

    @property
    def root(self) -> Path:
        path = self.folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(path))
        return path

    def issue(self, name: str = "server", **settings: object) -> tuple[Path, Path]:
        """Files of a certificate and its key, renewed where they are there already."""
        issued = self.ca.issue_cert("127.0.0.1", "localhost", common_name=name, **settings)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
        certificate.write_bytes(chain)
        key.write_bytes(issued.private_key_pem.bytes())
        key.chmod(0o600)
        return certificate, key

    def files(self, name: str = "server") -> dict[str, Path]:
        certificate, key = self.issue(name)
        return {"tls_cert": certificate, "tls_key": key}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, trustme.CA())


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    (tmp_path / "other").mkdir()
    return Authority(tmp_path / "other", trustme.CA())


Dial = Callable[..., grpc.Channel]


@pytest.fixture
def dial() -> Iterator[Dial]:
    """Channels of their own, which share no connection."""
    channels = []

    def make(running: Running, roots: Path, pair: tuple[Path, Path] | None = None) -> grpc.Channel:
        certificate, key = (each.read_bytes() for each in pair) if pair else (None, None)
        credentials = grpc.ssl_channel_credentials(roots.read_bytes(), key, certificate)
        target, options = (
            f"127.0.0.1:{running.server.port}",
            [("grpc.use_local_subchannel_pool", 1)],
        )
        channels.append(grpc.secure_channel(target, credentials, options))
        return channels[-1]

    yield make
    for each in channels:
        each.close()


def classify(channel: grpc.Channel) -> str:
    stub = PredictionServiceStub(channel)
    return stub.ClassifyText(ClassifyTextRequest(texts=["bank"]), timeout=30).model


def page(
    running: Running, path: str, roots: Path, pair: tuple[Path, Path] | None = None
) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=roots)
    if pair is not None:
        context.load_cert_chain(*pair)
    port = running.server.metrics_port
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def look(running: Running) -> None:
    """Let the server look at its files now."""
    server = running.server
    running.loop.run(server._security.look())


def test_both_ports_speak_tls_and_nothing_else(
    launch: Launch, authority: Authority, other: Authority, dial: Dial
) -> None:
    running = launch(**authority.files())
    assert classify(dial(running, authority.root)) == "news"
    assert page(running, "/readyz", authority.root)[0] == 200
    with pytest.raises(grpc.RpcError) as failure:
        running.classify("bank", timeout=30)
    assert failure.value.code() is Code.UNAVAILABLE
    with pytest.raises(grpc.RpcError) as failure:
        classify(dial(running, other.root))
    assert failure.value.code() is Code.UNAVAILABLE
    with pytest.raises(ssl.SSLCertVerificationError):
        page(running, "/readyz", other.root)
    plain = http.client.HTTPConnection("127.0.0.1", running.server.metrics_port, timeout=30)
    with pytest.raises((http.client.BadStatusLine, ConnectionError)):
        plain.request("GET", "/readyz")
        plain.getresponse()
    plain.close()


def test_with_an_authority_of_clients_only_its_clients_may_call(
    launch: Launch, authority: Authority, other: Authority, dial: Dial
) -> None:
    running = launch(**authority.files(), tls_client_ca=other.root)
    alice, stranger = other.issue("alice"), authority.issue("stranger")
    assert classify(dial(running, authority.root, alice)) == "news"
    for pair in (None, stranger):
        with pytest.raises(grpc.RpcError) as failure:
            classify(dial(running, authority.root, pair))
        assert failure.value.code() is Code.UNAVAILABLE
    assert page(running, "/v2/models/news", authority.root, alice)[0] == 200
    assert page(running, "/metrics", authority.root, alice)[0] == 200
    for path in ("/v2/models/news", "/metrics", "/v2"):
        status, told = page(running, path, authority.root)
        assert (status, "client certificate" in told) == (401, True)
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert page(running, path, authority.root)[0] == 200
    with pytest.raises((ssl.SSLError, ConnectionError)):
        page(running, "/healthz", authority.root, stranger)


def test_a_renewed_certificate_meets_new_connections_and_breaks_no_old_one(
    launch: Launch, authority: Authority, other: Authority, dial: Dial
) -> None:
    running = launch(**authority.files())
    old = dial(running, authority.root)
    assert classify(old) == "news"
    kept = http.client.HTTPSConnection(
        "127.0.0.1", running.server.metrics_port, timeout=30,
        context=ssl.create_default_context(cafile=authority.root),
    )  # fmt: skip
    kept.request("GET", "/readyz")
    kept.getresponse().read()
    certificate, key = other.issue("server", not_after=datetime(2051, 1, 1, tzinfo=UTC))
    (authority.folder / "server.pem").write_bytes(certificate.read_bytes())
    (authority.folder / "server.key").write_bytes(key.read_bytes())
    look(running)
    assert classify(dial(running, other.root)) == "news"
    assert page(running, "/readyz", other.root)[0] == 200
    assert classify(old) == "news"
    kept.request("GET", "/readyz")
    assert kept.getresponse().status == 200
    kept.close()
    with pytest.raises(grpc.RpcError):
        classify(dial(running, authority.root))
    with pytest.raises(ssl.SSLCertVerificationError):
        page(running, "/readyz", authority.root)
    expires = running.metric("edgewright_tls_certificate_expires_timestamp_seconds")
    assert expires == datetime(2051, 1, 1, tzinfo=UTC).timestamp()
    assert running.metric("edgewright_reloads_total", files="tls", outcome="taken") == 1


def test_an_authority_of_clients_is_renewed_too_and_the_old_one_forgotten(
    launch: Launch, authority: Authority, other: Authority, dial: Dial
) -> None:
    clients = authority.folder / "clients.pem"
    clients.write_bytes(authority.root.read_bytes())
    running = launch(**authority.files(), tls_client_ca=clients)
    old, new = authority.issue("old"), other.issue("new")
    assert classify(dial(running, authority.root, old)) == "news"
    clients.write_bytes(other.root.read_bytes())
    look(running)
    assert classify(dial(running, authority.root, new)) == "news"
    assert page(running, "/v2/models/news", authority.root, new)[0] == 200
    with pytest.raises(grpc.RpcError):
        classify(dial(running, authority.root, old))
    with pytest.raises((ssl.SSLError, ConnectionError)):
        page(running, "/v2/models/news", authority.root, old)


def test_half_a_renewal_keeps_the_old_pair_until_the_other_half_is_there(
    launch: Launch,
    authority: Authority,
    other: Authority,
    dial: Dial,
    caplog: pytest.LogCaptureFixture,
) -> None:
    running = launch(**authority.files())
    certificate, key = other.issue("server")
    for broken in (certificate.read_bytes(), b"", certificate.read_bytes()[:300]):
        (authority.folder / "server.pem").write_bytes(broken)
        look(running)
        look(running)
        assert classify(dial(running, authority.root)) == "news"
        assert page(running, "/readyz", authority.root)[0] == 200
    assert running.metric("edgewright_reloads_total", files="tls", outcome="refused") == 3
    assert "does not belong to" in caplog.text
    assert "holds no certificate in PEM" in caplog.text
    (authority.folder / "server.pem").unlink()
    look(running)
    assert classify(dial(running, authority.root)) == "news"
    (authority.folder / "server.pem").write_bytes(certificate.read_bytes())
    (authority.folder / "server.key").write_bytes(key.read_bytes())
    look(running)
    assert classify(dial(running, other.root)) == "news"


def test_the_server_looks_by_itself(
    launch: Launch, authority: Authority, other: Authority, dial: Dial,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("edgewright.serve.security.RELOAD_S", 0.01)
    running = launch(**authority.files())
    certificate, key = other.issue("server")
    (authority.folder / "server.key").write_bytes(key.read_bytes())
    (authority.folder / "server.pem").write_bytes(certificate.read_bytes())

    async def taken() -> None:
        while not running.metric("edgewright_reloads_total", files="tls", outcome="taken"):
            await asyncio.sleep(0.01)

    running.loop.run(asyncio.wait_for(taken(), 30))
    assert classify(dial(running, other.root)) == "news"


def test_a_look_that_fails_is_not_the_last_and_what_it_missed_is_taken(
    launch: Launch, authority: Authority, other: Authority, dial: Dial,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    running = launch(**authority.files())
    certificate, key = other.issue("server")
    (authority.folder / "server.key").write_bytes(key.read_bytes())
    (authority.folder / "server.pem").write_bytes(certificate.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr("edgewright.serve.tls._warn", lambda *_: (authority.folder / "no").stat())
        with pytest.raises(FileNotFoundError):
            look(running)
    look(running)
    assert classify(dial(running, other.root)) == "news"


def test_the_watch_of_the_files_outlives_what_nobody_foresaw(
    launch: Launch, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewright.serve.security.RELOAD_S", 0.01)
    looked = threading.Semaphore(0)

    async def failing(*_: object) -> None:
        looked.release()
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(Security, "look", failing)
    launch(**authority.files())
    assert all(looked.acquire(timeout=30) for _ in range(3))


def security(**options: Path) -> Security:
    return Security(ServeConfig(Path("repository"), **options), Instruments())


def test_everything_that_is_wrong_with_the_files_is_told_at_once(
    authority: Authority, tmp_path: Path
) -> None:
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError) as caught:
        security(tls_cert=nonsense, tls_key=nonsense, tls_client_ca=nonsense, tokens=nonsense)
    told = "\n".join(caught.value.faults)
    assert f"--tls-cert {nonsense} holds no certificate in PEM" in told
    assert f"--tls-key {nonsense} holds no private key in PEM" in told
    assert f"--tls-client-ca {nonsense} holds no certificate in PEM" in told
    assert f"--tokens {nonsense}, line 1" in told
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError) as caught:
        security(tls_cert=missing, tls_key=tmp_path)
    assert caught.value.faults == (
        f"--tls-cert {missing} cannot be read: No such file or directory",
        f"--tls-key {tmp_path} cannot be read: Is a directory",
    )
    mine, its = authority.issue("mine"), authority.issue("its")
    with pytest.raises(ConfigError, match="does not belong to --tls-cert .*mine.pem"):
        security(tls_cert=mine[0], tls_key=its[1])


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_password(
    authority: Authority,
) -> None:
    from cryptography.hazmat.primitives import serialization as form

    certificate, key = authority.issue()
    loaded = form.load_pem_private_key(key.read_bytes(), None)
    secret = form.BestAvailableEncryption(b"secret")
    key.write_bytes(loaded.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, secret))
    with pytest.raises(ConfigError, match="is encrypted; decrypt it with `openssl pkey"):
        security(tls_cert=certificate, tls_key=key)


def test_what_works_but_is_no_good_is_warned_of(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    certificate, key = authority.issue(not_before=past - timedelta(days=1), not_after=past)
    key.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        security(tls_cert=certificate, tls_key=key)
    assert "expired on" in caplog.text
    assert f"--tls-key {key} can be read by everybody; `chmod 600` it" in caplog.text


def test_options_that_need_each_other_are_given_together() -> None:
    file = Path("x.pem")
    for options in ({"tls_cert": file}, {"tls_key": file}):
        with pytest.raises(ConfigError, match="--tls-cert and --tls-key are given together"):
            ServeConfig(Path("repository"), **options)
    with pytest.raises(ConfigError, match="--tls-client-ca needs TLS"):
        ServeConfig(Path("repository"), tls_client_ca=file)
