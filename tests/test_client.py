"""The client against a real gRPC server that fails on demand, and its calls without any I/O."""

from __future__ import annotations

import asyncio
import http.server
import random
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_server import FakeServer, label_of
from hypothesis import given, settings
from hypothesis import strategies as st
from lean import lean_python

from edgewright import calls
from edgewright.calls import Calls, Deadline, Pause, Send
from edgewright.client import AsyncClient, Client, ModelState, Tls
from edgewright.errors import (
    BackendUnavailableError,
    ConfigError,
    DeadlineError,
    EdgewrightError,
    FeedbackStoreError,
    InputError,
    ModelNotFoundError,
    NotReadyError,
    OverloadedError,
    ServiceError,
)
from edgewright.rpc_errors import STATUS_METADATA_KEY, to_status
from edgewright.v1 import model_pb2

KINDS = ("sync", "async")


@dataclass
class Clock:
    """Time that passes only while a client sleeps."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    async def async_sleep(self, seconds: float) -> None:
        self.sleep(seconds)


def ask(
    kind: str, target: str, method: str, *args: Any, clock: Clock | None = None, **options: Any
) -> Any:
    """The same call through either client; ``call_options`` go to the method."""
    call_options = options.pop("call_options", {})
    if clock is not None:
        sleep = clock.sleep if kind == "sync" else clock.async_sleep
        options |= {"clock": clock, "sleep": sleep}
    if kind == "sync":
        with Client(target, **options) as client:
            return getattr(client, method)(*args, **call_options)

    async def run() -> Any:
        async with AsyncClient(target, **options) as client:
            return await getattr(client, method)(*args, **call_options)

    return asyncio.run(run())


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_text_comes_back_with_its_class(kind: str, server: FakeServer) -> None:
    (answer,) = ask(kind, server.target, "classify", "United won", call_options={"model": "news"})
    assert (answer.label, answer.score, answer.truncated) == ("sport", 0.75, False)
    assert [(each.label, each.score) for each in answer.scores] == [
        ("sport", 0.75),
        ("business", 0.25),
    ]
    assert uuid.UUID(answer.prediction_id)


def test_the_request_says_what_was_asked(kind: str, server: FakeServer) -> None:
    options = {"model": "news", "version": 3, "top_k": 1}
    (answer,) = ask(kind, server.target, "classify", ["x"], call_options=options)
    (request,) = server.requests
    assert (request.model, request.version, request.top_k) == ("news", 3, 1)
    assert len(answer.scores) == 1


def test_a_long_list_goes_in_several_requests_and_keeps_its_order(
    kind: str, server: FakeServer
) -> None:
    texts = [f"{index} {'won' if index % 3 else 'rose'}" for index in range(150)]
    answers = ask(kind, server.target, "classify", texts)
    assert [answer.label for answer in answers] == [label_of(text) for text in texts]
    assert [len(request.texts) for request in server.requests] == [64, 64, 22]


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.text(max_size=12), min_size=1), st.integers(1, 5), st.integers(1, 20))
def test_requests_hold_every_text_once_and_stay_small(
    texts: list[str], max_texts: int, max_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "MAX_TEXTS", max_texts)
        patch.setattr(calls, "MAX_TEXT_BYTES", max_bytes)
        chunks = list(calls._chunks(texts))
    assert [text for chunk in chunks for text in chunk] == texts
    for chunk in chunks:
        assert 1 <= len(chunk) <= max_texts
        assert len(chunk) == 1 or sum(len(text.encode()) for text in chunk) <= max_bytes


def test_large_texts_are_spread_by_size(kind: str, server: FakeServer) -> None:
    texts = ["rose " * 100_000] * 5  # 500 kB each: two fit into a request
    assert len(ask(kind, server.target, "classify", texts)) == 5
    assert [len(request.texts) for request in server.requests] == [2, 2, 1]


@pytest.mark.parametrize(
    "failure",
    [
        InputError("texts[0] is empty", field="texts[0]"),
        ModelNotFoundError("no model 'x'"),
        BackendUnavailableError("no OpenVINO"),
        DeadlineError("too late"),
        FeedbackStoreError("disk full"),
        NotReadyError("still starting"),
        OverloadedError("queue full", retry_after_s=0.01),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_errors_come_back_as_they_were_raised_and_name_the_server(
    kind: str, server: FakeServer, failure: EdgewrightError
) -> None:
    server.failures = [failure]
    with pytest.raises(type(failure)) as caught:
        ask(kind, server.target, "classify", "x", retries=0)
    assert str(caught.value) == f"{server.target}: {failure}"
    assert caught.value.__cause__ is not None


def test_a_bug_in_the_server_is_told_in_general_words(kind: str, server: FakeServer) -> None:
    server.failures = [ZeroDivisionError("secret")]
    with pytest.raises(EdgewrightError) as caught:
        ask(kind, server.target, "classify", "x")
    assert "secret" not in str(caught.value)
    assert len(server.requests) == 1


def test_a_bad_text_is_named_by_its_place_in_the_callers_list(
    kind: str, server: FakeServer
) -> None:
    def refuse(request: Any) -> InputError | None:
        if "bad" not in request.texts:
            return None
        field = f"texts[{list(request.texts).index('bad')}]"
        return InputError(f"{field} is too long", field=field)

    server.refuse = refuse
    with pytest.raises(InputError, match=r"texts\[66\] is too long") as caught:
        ask(kind, server.target, "classify", ["x"] * 66 + ["bad"])
    assert caught.value.field == "texts[66]"


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ([], "texts"),
        (["fine", "\udcff"], "texts[1]"),
        (["fine", 3], "texts[1]"),
        ([None], "texts[0]"),
    ],
)
def test_texts_that_cannot_be_sent_are_refused_before_anything_is_sent(
    kind: str, server: FakeServer, texts: Any, field: str
) -> None:
    with pytest.raises(InputError) as caught:
        ask(kind, server.target, "classify", texts)
    assert caught.value.field == field
    assert server.requests == []


@pytest.mark.parametrize(("name", "value"), [("top_k", -1), ("top_k", 2**31), ("version", 2**63)])
def test_numbers_out_of_range_are_refused(
    kind: str, server: FakeServer, name: str, value: int
) -> None:
    with pytest.raises(InputError) as caught:
        ask(kind, server.target, "classify", "x", call_options={name: value})
    assert caught.value.field == name


def test_unavailable_is_tried_again_with_growing_pauses(kind: str, server: FakeServer) -> None:
    server.failures = [
        NotReadyError("draining"),
        grpc.StatusCode.UNAVAILABLE,
        NotReadyError("again"),
    ]
    clock = Clock()
    (answer,) = ask(kind, server.target, "classify", "x", clock=clock)
    assert answer.label == "business"
    assert len(server.requests) == 4
    for attempt, pause in enumerate(clock.slept):
        longest = calls.FIRST_DELAY_S * 2**attempt
        assert longest / 2 <= pause < longest
    assert len(set(clock.slept)) == 3


def test_an_overload_is_tried_again_no_sooner_than_the_server_said(
    kind: str, server: FakeServer
) -> None:
    server.failures = [OverloadedError("full", retry_after_s=1.5)]
    clock = Clock()
    ask(kind, server.target, "classify", "x", clock=clock)
    (pause,) = clock.slept
    assert 1.5 < pause <= 1.5 + calls.FIRST_DELAY_S


def test_an_overload_that_lasts_past_the_deadline_is_told_at_once(
    kind: str, server: FakeServer
) -> None:
    server.failures = [OverloadedError("full", retry_after_s=8.0)]
    clock = Clock()
    with pytest.raises(OverloadedError) as caught:
        ask(kind, server.target, "classify", "x", clock=clock, timeout_s=5.0)
    assert caught.value.retry_after_s == 8.0
    assert clock.slept == []


@pytest.mark.parametrize(
    "failure",
    [
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # without RetryInfo
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        ModelNotFoundError("no model"),
        InputError("bad", field="texts"),
    ],
    ids=str,
)
def test_nothing_else_is_tried_again(
    kind: str, server: FakeServer, failure: BaseException | grpc.StatusCode
) -> None:
    server.failures = [failure]
    clock = Clock()
    with pytest.raises(EdgewrightError):
        ask(kind, server.target, "classify", "x", clock=clock)
    assert (len(server.requests), clock.slept) == (1, [])


def test_retries_end(kind: str, server: FakeServer) -> None:
    server.failures = [NotReadyError(f"attempt {number}") for number in range(9)]
    with pytest.raises(NotReadyError, match="attempt 2"):
        ask(kind, server.target, "classify", "x", clock=Clock(), retries=2)
    assert len(server.requests) == 3


def test_every_call_has_a_deadline_and_the_server_knows_it(kind: str, server: FakeServer) -> None:
    for method, args in (("classify", ["x"]), ("list_models", []), ("get_model", ["news"])):
        ask(kind, server.target, method, *args, timeout_s=20.0)
    assert all(left is not None and 10 < left < 21 for left in server.time_remaining_s)


def test_a_server_that_does_not_answer_costs_no_more_than_the_deadline(
    kind: str, server: FakeServer
) -> None:
    server.hold.clear()
    with pytest.raises(DeadlineError, match=rf"no answer from {server.target} within 0\.2 s"):
        ask(kind, server.target, "classify", "x", call_options={"timeout_s": 0.2})


def test_the_deadline_covers_all_requests_of_a_list(kind: str, server: FakeServer) -> None:
    clock = Clock()
    server.failures = [OverloadedError("full", retry_after_s=3.0)]
    ask(kind, server.target, "classify", ["x"] * 70, clock=clock, timeout_s=20.0)
    assert len(server.requests) == 3
    limits = (20.5, 17.5, 17.5)  # the second and third attempt come after three seconds' sleep
    for left, limit in zip(server.time_remaining_s, limits, strict=True):
        assert left is not None
        assert left < limit


class Failure(grpc.RpcError):
    """A failed call, as the calls see it."""

    def __init__(self, error: EdgewrightError) -> None:
        self._status: Any = to_status(error)

    def code(self) -> grpc.StatusCode:
        return next(code for code in grpc.StatusCode if code.value[0] == self._status.code)

    def details(self) -> str:
        return str(self._status.message)

    def trailing_metadata(self) -> Any:
        return ((STATUS_METADATA_KEY, self._status.SerializeToString()),)


Delays = list[float | None]  # what each attempt meets: UNAVAILABLE, or RetryInfo with seconds


def attempts_of(plan: Calls, delays: Delays, deadline: Deadline, clock: Clock) -> list[float]:
    """Moments at which a call would send, each attempt taking half a second; after ``delays`` it
    would succeed."""
    steps = plan.unary("ListModels", model_pb2.ListModelsRequest(), deadline)
    sent: list[float] = []
    try:
        step = next(steps)
        while len(sent) < len(delays):
            assert isinstance(step, Send)
            assert 0 < step.timeout_s <= deadline.remaining_s()
            sent.append(clock.now)
            clock.now += min(0.5, step.timeout_s)
            delay = delays[len(sent) - 1]
            pause = steps.throw(
                Failure(
                    NotReadyError("no")
                    if delay is None
                    else OverloadedError("full", retry_after_s=delay)
                )
            )
            assert isinstance(pause, Pause)
            clock.sleep(pause.seconds)
            step = steps.send(None)
    except (NotReadyError, OverloadedError, DeadlineError):
        return sent
    return [*sent, clock.now]


@settings(deadline=None)  # a busy machine is no failure
@given(
    delays=st.lists(st.one_of(st.none(), st.floats(0, 10)), max_size=12),
    timeout_s=st.floats(0.01, 30),
    retries=st.integers(0, 8),
    seed=st.integers(0, 99),
)
def test_no_attempt_is_made_past_the_deadline_or_sooner_than_allowed(
    delays: Delays, timeout_s: float, retries: int, seed: int
) -> None:
    clock = Clock()
    start = clock.now
    plan = Calls("host:1", retries, random.Random(seed))
    sent = attempts_of(plan, delays, Deadline.after(timeout_s, clock), clock)
    assert 1 <= len(sent) <= retries + 1
    assert all(moment < start + timeout_s for moment in sent)
    for earlier, later, delay in zip(sent, sent[1:], delays, strict=False):
        assert later - earlier >= 0.5 + (delay or 0) - 1e-6


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


def test_ready_is_true_only_when_every_model_is(kind: str, server: FakeServer) -> None:
    assert ask(kind, server.target, "ready")
    server.models.append(model_pb2.Model(name="mail", state=model_pb2.MODEL_STATE_LOADING))
    assert not ask(kind, server.target, "ready")
    assert ask(kind, server.target, "ready", "news")
    assert not ask(kind, server.target, "ready", "mail")
    server.models.clear()
    assert not ask(kind, server.target, "ready")


def test_ready_asks_once_and_does_not_raise_where_nobody_answers(
    kind: str, server: FakeServer
) -> None:
    clock = Clock()
    assert not ask(kind, f"127.0.0.1:{free_port()}", "ready", clock=clock)
    server.failures = [NotReadyError("starting")]
    assert not ask(kind, server.target, "ready", clock=clock)
    assert clock.slept == []
    with pytest.raises(ModelNotFoundError):
        ask(kind, server.target, "ready", "nothing")


def test_waiting_ends_when_the_model_is_loaded(kind: str, server: FakeServer) -> None:
    server.models[0].state = model_pb2.MODEL_STATE_LOADING
    server.failures = [NotReadyError("starting"), NotReadyError("starting")]
    clock = Clock()

    def load_then_sleep(seconds: float) -> None:
        if len(server.requests) == 4:
            server.models[0].state = model_pb2.MODEL_STATE_READY
        Clock.sleep(clock, seconds)

    clock.sleep = load_then_sleep  # type: ignore[method-assign]
    ask(kind, server.target, "wait_until_ready", "news", clock=clock)
    assert len(server.requests) == 5


def test_waiting_finds_a_server_that_comes_up_later(kind: str) -> None:
    port = free_port()
    server = FakeServer(port)
    starter = threading.Timer(0.5, server.__enter__)
    starter.start()
    try:
        ask(kind, f"127.0.0.1:{port}", "wait_until_ready", call_options={"timeout_s": 30.0})
    finally:
        starter.join()
        server.__exit__()


def test_waiting_in_vain_says_what_was_last_heard(kind: str, server: FakeServer) -> None:
    with pytest.raises(NotReadyError, match=r"not ready within 3 s: no server answers at"):
        ask(
            kind, f"127.0.0.1:{free_port()}", "wait_until_ready",
            clock=Clock(), call_options={"timeout_s": 3.0},
        )  # fmt: skip
    server.models[0].state = model_pb2.MODEL_STATE_LOADING
    with pytest.raises(NotReadyError, match="still loading"):
        ask(
            kind, server.target, "wait_until_ready",
            clock=Clock(), call_options={"timeout_s": 3.0},
        )  # fmt: skip


def test_a_model_is_described_with_what_is_proven_of_it(kind: str, server: FakeServer) -> None:
    server.models[0].certificate.CopyFrom(
        model_pb2.Certificate(
            verdict=model_pb2.VERDICT_PASS, loss_upper_bound=0.01, budget=0.015, rows=600
        )
    )
    server.models.append(model_pb2.Model(name="mail"))
    news, mail = ask(kind, server.target, "list_models")
    assert news == ask(kind, server.target, "get_model", "news")
    assert (news.name, news.version, news.state) == ("news", 1, ModelState.READY)
    assert news.labels == ("business", "sport")
    assert (news.certificate.verdict, news.certificate.rows) == ("PASS", 600)
    assert mail.certificate is None
    with pytest.raises(ModelNotFoundError):
        ask(kind, server.target, "get_model", "nothing")


def test_a_word_that_only_a_newer_server_knows_reads_as_unspecified(
    kind: str, server: FakeServer
) -> None:
    server.models[0].state = 17  # type: ignore[assignment]
    server.models[0].certificate.verdict = 99  # type: ignore[assignment]
    (model,) = ask(kind, server.target, "list_models")
    assert (model.state, model.certificate.verdict) == (ModelState.UNSPECIFIED, "UNSPECIFIED")


def test_threads_share_one_client(server: FakeServer) -> None:
    texts = [f"{index} {'won' if index % 2 else 'rose'}" for index in range(64)]
    with Client(server.target) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(client.classify, texts))
    assert [answer.label for (answer,) in answers] == [label_of(text) for text in texts]
    assert len({answer.prediction_id for (answer,) in answers}) == 64


def test_tasks_share_one_client(server: FakeServer) -> None:
    texts = [f"{index} {'won' if index % 2 else 'rose'}" for index in range(64)]

    async def run() -> list[Any]:
        async with AsyncClient(server.target) as client:
            return await asyncio.gather(*map(client.classify, texts))

    answers = asyncio.run(run())
    assert [answer.label for (answer,) in answers] == [label_of(text) for text in texts]


def test_a_cancelled_task_cancels_its_call(server: FakeServer) -> None:
    server.hold.clear()

    async def run() -> None:
        async with AsyncClient(server.target) as client:
            call = asyncio.create_task(client.classify("x"))
            while not server.requests:
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(run())


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


def test_a_server_that_gives_too_few_answers_is_not_believed(kind: str, server: FakeServer) -> None:
    server.most_answers = 1
    with pytest.raises(ServiceError, match="1 answers to 2 texts"):
        ask(kind, server.target, "classify", ["a", "b"])


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


CLIENT_SCRIPT = """
import asyncio, importlib.util, sys
from edgewright.client import AsyncClient, Client
import google.protobuf
for name in ("numpy", "torch", "onnxruntime", "tokenizers", "transformers", "PIL"):
    assert importlib.util.find_spec(name) is None, name + " is installed"
texts = ["United won", "Shares rose"] * 50
with Client(sys.argv[1]) as client:
    client.wait_until_ready("news")
    labels = [answer.label for answer in client.classify(texts, model="news")]
    try:
        client.classify("x", model="nothing")
    except Exception as error:
        print(type(error).__name__)
async def run():
    async with AsyncClient(sys.argv[1]) as client:
        return [answer.label for answer in await client.classify(texts)]
assert labels == asyncio.run(run()) == ["sport", "business"] * 50
print(google.protobuf.__version__.split(".")[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("requirement", "major"), [("protobuf<7", "6"), ("protobuf>=7", "7")])
def test_the_client_extra_alone_calls_a_server(
    server: FakeServer, requirement: str, major: str
) -> None:
    python = lean_python("client", (requirement,))
    done = subprocess.run(
        [python, "-I", "-W", "error", "-c", CLIENT_SCRIPT, server.target],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ModelNotFoundError", major]
    command = [python.with_name("edgewright"), "predict", "--target", server.target, "Shares rose"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout.split()[0]) == (0, "business"), told.stderr
