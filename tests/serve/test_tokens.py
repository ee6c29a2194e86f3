"""Bearer tokens: who is let in where, what is told to whom is not, and files that change."""

from __future__ import annotations

import hmac
import http.client
import json
import logging
import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from edgewright.cli import run
from edgewright.client import Client, Feedback
from edgewright.errors import ConfigError, PermissionDeniedError, UnauthenticatedError
from edgewright.oip import inference_pb2
from edgewright.rpc_errors import STATUS_METADATA_KEY
from edgewright.serve import tokens
from edgewright.serve.callers import right_for
from edgewright.serve.parts import SERVICES
from edgewright.serve.tokens import Right, Token, Tokens, digest_of, new_token, read_tokens
from edgewright.v1 import feedback_pb2, model_pb2, prediction_pb2

from .conftest import Launch, Running, until

Code = grpc.StatusCode
NOBODY = "ew_nobody"


class Keys:
    """Secrets by name, and the server's file of them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.secrets: dict[str, str] = {}
        self.lines: list[str] = []

    def add(self, name: str, *rights: Right) -> str:
        self.secrets[name], token = new_token(name, rights)
        self.lines.append(token.line())
        self.file.write_text("# who may call\n\n" + "\n".join(self.lines) + "\n")
        return self.secrets[name]


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    made = Keys(tmp_path / "tokens.txt")
    for right in Right:
        made.add(f"only-{right}", right)
    return made


def told(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Code and reason of a failed call."""
    (packed,) = (value for key, value in error.trailing_metadata() if key == STATUS_METADATA_KEY)
    info = ErrorInfo()
    assert Status.FromString(packed).details[0].Unpack(info)
    return error.code(), info.reason


def call(running: Running, method: str, secret: str | None, streams: bool = False) -> Any:
    """The raw answer of a method to an empty request."""
    metadata = (("authorization", f"Bearer {secret}"),) if secret else ()
    if streams:
        return list(running.channel.stream_stream(method)(iter([]), metadata=metadata, timeout=30))
    return running.channel.unary_unary(method)(b"", metadata=metadata, timeout=30)


METHODS = [
    (f"/{service.full_name}/{method.name}", method.client_streaming)
    for file in (prediction_pb2, model_pb2, feedback_pb2, inference_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def test_every_method_there_is_takes_its_right(launch: Launch, keys: Keys) -> None:
    assert {method.split("/")[1] for method, _ in METHODS} >= set(SERVICES)
    running = launch(tokens=keys.file)
    for method, streams in METHODS:
        needed = right_for(method)
        if needed is None:
            assert call(running, method, None)
            continue
        for secret in (None, NOBODY, "", "x" * 4_000):
            with pytest.raises(grpc.RpcError) as failure:
                call(running, method, secret, streams)
            assert told(failure.value) == (Code.UNAUTHENTICATED, "UNAUTHENTICATED"), method
        for right in Right:
            secret = keys.secrets[f"only-{right}"]
            try:
                call(running, method, secret, streams)
                code = Code.OK
            except grpc.RpcError as error:
                code = error.code()
            assert (code is Code.PERMISSION_DENIED) == (right is not needed), (method, right)
            assert code is not Code.UNAUTHENTICATED
    until(lambda: running.server.in_flight == 0)


def test_methods_that_are_open_are_probes_and_no_others() -> None:
    assert [method for method, _ in METHODS if right_for(method) is None] == [
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
    ]
    assert right_for("/grpc.health.v1.Health/Watch") is None
    assert right_for("/edgewright.v1.AdminService/LoadModel") is Right.ADMIN
    assert right_for("/edgewright.v1.FeedbackService/StreamFeedback") is Right.FEEDBACK


def test_health_is_open_and_reflection_is_not(launch: Launch, keys: Keys) -> None:
    running = launch(tokens=keys.file, reflection=True)
    health = HealthStub(running.channel)
    assert health.Check(HealthCheckRequest()).status == HealthCheckResponse.SERVING
    assert next(health.Watch(HealthCheckRequest())).status == HealthCheckResponse.SERVING
    stub, asked = ServerReflectionStub(running.channel), ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as failure:
        list(stub.ServerReflectionInfo(iter([asked])))
    assert told(failure.value) == (Code.UNAUTHENTICATED, "UNAUTHENTICATED")
    metadata = (("authorization", f"bearer {keys.secrets['only-call']}"),)
    assert list(stub.ServerReflectionInfo(iter([asked]), metadata=metadata))


def fetch(
    running: Running, method: str, path: str, secret: str | None = None, body: bytes = b""
) -> tuple[int, dict[str, str], str]:
    port = running.server.metrics_port
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read().decode()
    finally:
        connection.close()


def test_every_route_takes_its_right(launch: Launch, keys: Keys) -> None:
    running = launch(tokens=keys.file)
    body = json.dumps({"texts": ["bank"]}).encode()
    routes = [
        ("POST", "/v1/models/news:classify", Right.CALL),
        ("POST", "/v2/models/news/infer", Right.CALL),
        ("GET", "/v2/models/news", Right.CALL),
        ("GET", "/v2/models/news/ready", Right.CALL),
        ("GET", "/v2/models/news/config", Right.CALL),
        ("GET", "/v2", Right.CALL),
        ("GET", "/metrics", Right.METRICS),
    ]
    for method, path, needed in routes:
        for secret in (None, NOBODY):
            status, headers, text = fetch(running, method, path, secret, body)
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer"), path
            assert json.loads(text)["reason"] == "UNAUTHENTICATED"
        for right in Right:
            status, _, _ = fetch(running, method, path, keys.secrets[f"only-{right}"], body)
            assert (status == 403) == (right is not needed), (path, right)
    assert fetch(running, "POST", routes[0][1], keys.secrets["only-call"], body)[0] == 200
    for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert fetch(running, "GET", path)[0] == 200
    assert running.metric("edgewright_rejected_total", reason="UNAUTHENTICATED") == 14
    name = {"method": "http/Classify", "code": "UNAUTHENTICATED"}
    assert running.metric("edgewright_requests_total", **name) == 2


def test_the_client_sends_its_token_with_calls_and_streams(
    launch: Launch, keys: Keys, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'feedback.db'}"
    running = launch(tokens=keys.file, feedback=store)
    target, secrets = f"127.0.0.1:{running.server.port}", keys.secrets
    with Client(target, token=secrets["only-call"]) as client:
        assert client.classify("bank")[0].label
        assert [each.result().label for each in client.stream_classify(["bank"] * 3)]
        with pytest.raises(PermissionDeniedError, match="only-call lacks the right feedback"):
            client.send_feedback(Feedback("sport", "x"))
    with Client(target, token=secrets["only-feedback"]) as client:
        (ack,) = client.stream_feedback([Feedback("sport", "x")])
        assert ack.durable
        with pytest.raises(PermissionDeniedError):
            list(client.stream_classify(["bank"]))
    with Client(target, token=NOBODY) as client, pytest.raises(UnauthenticatedError):
        client.classify("bank")


def test_a_changed_file_lets_in_and_out_and_a_bad_one_changes_nothing(
    launch: Launch, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    running = launch(tokens=keys.file)
    method = "/edgewright.v1.ModelService/ListModels"
    look = lambda: running.loop.run(running.server._security.look())  # noqa: E731
    new = keys.add("new", Right.CALL)
    with pytest.raises(grpc.RpcError):
        call(running, method, new)
    look()
    assert call(running, method, new)
    for bad in ("nonsense", "", "name 00 call\n", "# nobody\n"):
        keys.file.write_text(bad)
        look()
        assert call(running, method, new)
    keys.file.unlink()
    look()
    assert call(running, method, new)
    assert running.metric("edgewright_reloads_total", files="tokens", outcome="refused") == 5
    assert "the change is not used" in caplog.text
    keys.lines.pop()
    keys.add("newer", Right.CALL)
    look()
    with pytest.raises(grpc.RpcError) as failure:
        call(running, method, new)
    assert failure.value.code() is Code.UNAUTHENTICATED
    assert running.metric("edgewright_reloads_total", files="tokens", outcome="taken") == 2


def test_the_access_log_names_who_called_by_his_token(
    launch: Launch, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    running = launch(tokens=keys.file, access_log="all")
    for secret in (keys.secrets["only-call"], NOBODY):
        with suppress(grpc.RpcError):
            call(running, "/edgewright.v1.ModelService/ListModels", secret)
    fetch(running, "GET", "/v2/models/news", keys.secrets["only-call"])
    until(lambda: sum(each.name == "edgewright.access" for each in caplog.records) == 3)
    fields = [each.fields for each in caplog.records if each.name == "edgewright.access"]
    known, unknown, by_http = fields
    assert (known["caller"], by_http["caller"]) == ("only-call", "only-call")
    assert known["address"].startswith("ipv4:127.0.0.1:")
    assert by_http["address"].startswith("127.0.0.1:")
    assert unknown["caller"] == unknown["address"]


def test_no_secret_gets_into_the_log_or_the_metrics(
    launch: Launch, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    running = launch(tokens=keys.file)
    with caplog.at_level(logging.DEBUG):
        for secret in (NOBODY, keys.secrets["only-call"], keys.secrets["only-metrics"]):
            with suppress(grpc.RpcError):
                call(running, "/edgewright.v1.ModelService/ListModels", secret)
            fetch(running, "GET", "/v2", secret)
    page = fetch(running, "GET", "/metrics", keys.secrets["only-metrics"])[2]
    for secret in (NOBODY, *keys.secrets.values()):
        assert secret not in caplog.text
        assert secret not in page


def test_every_hash_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    plain = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return plain(one, other)

    monkeypatch.setattr(tokens.hmac, "compare_digest", compare)
    made = [new_token(f"n{index}", [Right.CALL]) for index in range(5)]
    known = Tokens(token for _, token in made)
    assert known.find(made[0][0]) is made[0][1]
    assert known.find("ew_other") is None
    assert compared == [token.digest for _, token in made] * 2


def test_a_line_says_what_it_was_made_from(tmp_path: Path) -> None:
    secret, token = new_token("a.b-c@d", [Right.FEEDBACK, Right.CALL])
    assert token.line() == f"a.b-c@d {digest_of(secret).hex()} call,feedback"
    found = read_tokens(tmp_path, f"\ufeff# x\r\n{token.line()}\r\n".encode()).find(secret)
    assert found == Token("a.b-c@d", digest_of(secret), frozenset({Right.CALL, Right.FEEDBACK}))
    assert len({new_token("a", [])[0] for _ in range(100)}) == 100
    assert len(secret) >= 43  # 256 bits in base64


def test_every_bad_line_is_told_and_none_is_repeated(tmp_path: Path) -> None:
    digest, secret = "0" * 64, "a-token-in-the-wrong-file"
    lines = [
        secret, f"name {digest}", f"na/me {digest} call", f"name {digest[1:]} call",
        f"name {digest} call,{secret}", f"name {digest} call more", f"name {digest.replace('0', 'A')} call",
        f"one {digest} call", f"two {digest} call",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        read_tokens(tmp_path / "tokens", "\n".join(lines).encode())
    assert len(caught.value.faults) == 8
    assert all(f"line {index}:" in fault for index, fault in enumerate(caught.value.faults[:7], 1))
    assert "one and two have the same token" in caught.value.faults[-1]
    assert secret not in str(caught.value)


def test_the_command_prints_a_token_once_and_adds_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tokens.txt"
    assert run(["token", "new", "--name", "a", "--add-to", str(file)]) == 0
    (secret,) = capsys.readouterr().out.split()
    file.write_text(file.read_text().rstrip("\n"))  # as editors do
    assert (
        run(["token", "new", "--name", "b", "--rights", "admin", "--add-to", str(file), "--json"])
        == 0
    )
    made = json.loads(capsys.readouterr().out)
    assert file.read_text().splitlines()[1] == made["line"]
    known = read_tokens(file, file.read_bytes())
    first, second = known.find(secret), known.find(made["token"])
    assert first is not None
    assert second is not None
    assert (first.name, first.rights) == ("a", {Right.CALL, Right.FEEDBACK})
    assert (second.name, second.rights) == ("b", {Right.ADMIN})
    assert file.stat().st_mode & 0o077 == 0
    assert run(["token", "new", "--name", "c"]) == 0
    secret, line = capsys.readouterr().out.splitlines()
    assert line.split() == ["c", digest_of(secret).hex(), "call,feedback"]


def test_a_token_goes_into_a_file_that_only_its_owner_may_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, kept = tmp_path / "tokens.txt", tmp_path / "a.token"
    told = ["token", "new", "--name", "a", "--add-to", str(tokens), "-o", str(kept)]
    before = os.umask(0)
    try:
        assert run(told) == 0
    finally:
        os.umask(before)
    secret = kept.read_text().strip()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert read_tokens(tokens, tokens.read_bytes()).find(secret) is not None
    out, err = capsys.readouterr()
    assert out == f"{kept}\n"
    assert secret not in err
    lines = tokens.read_text()
    assert run(["token", "new", "--name", "b", "--add-to", str(tokens), "-o", str(kept)]) == 2
    assert "exists; give a new file" in capsys.readouterr().err
    assert (kept.read_text().strip(), tokens.read_text()) == (secret, lines)
    other = tmp_path / "other.token"
    assert run(["token", "new", "--name", "a", "--add-to", str(tokens), "-o", str(other)]) == 2
    assert not other.exists()


@pytest.mark.parametrize(
    ("room", "named"),
    [(0, "b.token"), (100, "tokens.txt")],
    ids=["for no token", "for half a line"],
)
def test_a_full_disk_leaves_no_token_that_is_not_known(
    tmp_path: Path, room: int, named: str
) -> None:
    file, kept = tmp_path / "tokens.txt", tmp_path / "b.token"
    line = f"a {'0' * 64} call\n"
    file.write_text(line)
    assert len(line) < 100 < 2 * len(line)
    done = subprocess.run(
        [sys.executable, "-c", "from edgewright.cli import main; main()", "token", "new",
         "--name", "b", "--add-to", str(file), "-o", str(kept)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: [Errno ")
    assert named in done.stderr
    assert "bug" not in done.stderr
    assert not kept.exists()
    assert file.read_text() == line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "a b"], "--name 'a b': use up to 64 of"),
        (["--name", "a", "--rights", "root,call"], "'root' is none; there are call, feedback"),
        (["--name", "a", "--add-to", "TAKEN"], "has a token of a; give another name"),
        (["--name", "b", "--add-to", "OTHER"], "--add-to OTHER is no file of tokens"),
        (["--name", "b", "--add-to", "OTHER"], "line 1: `name sha256 rights` is expected"),
        (["--name", "b", "--add-to", "OTHER"], "--tokens OTHER: 2 more faults"),
        (
            ["--name", "b", "--add-to", "NOWHERE/x"],
            "--add-to NOWHERE/x cannot be written: No such file",
        ),
    ],
)
def test_the_command_says_what_it_cannot_do(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("TAKEN").write_text(f"a {'0' * 64} call\n")
    Path("OTHER").write_text(12 * "shopping list\n")
    assert run(["token", "new", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, message in err, "bug" in err) == ("", True, False)
    assert Path("TAKEN").read_text() == f"a {'0' * 64} call\n"
    assert Path("OTHER").read_text() == 12 * "shopping list\n"
