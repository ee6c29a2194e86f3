"""Both clients against a real gRPC server: answers, errors, readiness."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from inspect import isfunction, signature
from pathlib import PurePosixPath
from typing import Any

import pytest
from both_clients import KINDS, Clock, ask
from fake_server import FakeServer, label_of
from free_ports import free_port, silent_port
from lean import lean_python, oldest

from edgewright.client import AsyncClient, Client, Feedback, ModelState
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
from edgewright.v1 import model_pb2


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


def target(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


async def consumed(call: Any) -> None:
    if isinstance(call, AsyncIterator):
        async for _ in call:
            pass
    else:
        await call


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


def test_images_come_back_with_their_classes(kind: str, server: FakeServer) -> None:
    (alone,) = ask(kind, server.target, "classify_images", b"won", call_options={"top_k": 1})
    assert (alone.label, len(alone.scores)) == ("sport", 1)
    images = [b"won" if index % 2 else b"lost" for index in range(130)]
    answers = ask(kind, server.target, "classify_images", images, call_options={"model": "news"})
    assert [answer.label for answer in answers] == ["business", "sport"] * 65
    assert [len(request.images) for request in server.requests] == [1, 64, 64, 2]
    assert server.requests[-1].model == "news"


def test_large_images_are_spread_by_size(kind: str, server: FakeServer) -> None:
    images = [b"x" * (3 << 20)] * 5
    assert len(ask(kind, server.target, "classify_images", images)) == 5
    assert [len(request.images) for request in server.requests] == [2, 2, 1]


def test_a_bad_image_is_named_by_its_place_in_the_callers_list(
    kind: str, server: FakeServer
) -> None:
    def refuse(request: Any) -> InputError | None:
        if b"bad" in request.images:
            place = f"images[{list(request.images).index(b'bad')}]"
            return InputError(f"{place} cannot be decoded", field=place)
        return None

    server.refuse = refuse
    images = [b"good"] * 70 + [b"bad"]
    with pytest.raises(InputError, match=r"images\[70\] cannot be decoded") as raised:
        ask(kind, server.target, "classify_images", images)
    assert raised.value.field == "images[70]"


def test_images_that_cannot_be_sent_are_refused_before_anything_is_sent(
    kind: str, server: FakeServer
) -> None:
    with pytest.raises(InputError, match="no images; give at least one"):
        ask(kind, server.target, "classify_images", [])
    with pytest.raises(InputError, match=r"images\[1\] is a str, not the bytes of an image file"):
        ask(kind, server.target, "classify_images", [b"a", "cat.jpg"])
    with pytest.raises(
        InputError, match="images is a PurePosixPath; give the bytes of an image file, or"
    ):
        ask(kind, server.target, "classify_images", PurePosixPath("cat.jpg"))
    with pytest.raises(InputError, match="texts is a int; give a str, or a list of such"):
        ask(kind, server.target, "classify", 5)
    assert server.requests == []


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


CALLS = {
    "classify": ["x"],
    "classify_images": [b"x"],
    "embed": ["x"],
    "embed_images": [b"x"],
    "stream_classify": [["x"]],
    "get_model": [],
    "ready": [],
    "list_models": [],
    "wait_until_ready": [],
    "send_feedback": [Feedback("sport", "p")],
    "stream_feedback": [[Feedback("sport", "p")]],
}
OF_ONE_MODEL = [name for name in CALLS if "list" not in name and "feedback" not in name]


@pytest.mark.parametrize("method", CALLS)
def test_a_closed_client_says_so(kind: str, server: FakeServer, method: str) -> None:
    told = f"this client of {server.target} is closed; make another one"
    with pytest.raises(ConfigError, match=told):
        ask(kind, server.target, method, *CALLS[method], closed=True)


@pytest.mark.parametrize("method", CALLS)
def test_a_call_in_progress_is_told_that_its_client_was_closed(
    kind: str, deaf: socket.socket, method: str
) -> None:
    def run() -> None:
        client = Client(target(deaf))
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(lambda: list(getattr(client, method)(*CALLS[method])))
            connection, _ = deaf.accept()  # which its first call begins
            client.close()
            connection.close()
            call.result(60)

    async def run_async() -> None:
        client = AsyncClient(target(deaf))
        call = asyncio.create_task(consumed(getattr(client, method)(*CALLS[method])))
        connection, _ = await asyncio.to_thread(deaf.accept)
        await client.close()
        connection.close()
        await call

    with pytest.raises(ConfigError, match="is closed; make another one"):
        run() if kind == "sync" else asyncio.run(run_async())


def test_two_tasks_may_close_a_client(deaf: socket.socket) -> None:
    async def run() -> None:
        client = AsyncClient(target(deaf))

        async def close(after: int) -> None:
            for _ in range(after):  # so that one of them comes while the call hears of the first
                await asyncio.sleep(0)
            await client.close()

        call = asyncio.create_task(client.classify("x"))
        connection, _ = await asyncio.to_thread(deaf.accept)
        await asyncio.gather(*map(close, range(8)))
        connection.close()
        with pytest.raises(ConfigError, match="is closed; make another one"):
            await call

    asyncio.run(run())


def test_a_task_that_is_cancelled_hears_of_no_close(deaf: socket.socket) -> None:
    async def run() -> None:
        client = AsyncClient(target(deaf))
        call = asyncio.create_task(client.classify("x"))
        connection, _ = await asyncio.to_thread(deaf.accept)
        call.cancel()
        await client.close()
        connection.close()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(run())


def test_a_call_that_meets_the_close_is_told_of_it(server: FakeServer) -> None:
    client = Client(server.target)
    classify = client._methods["ClassifyText"]

    def closed_first(*args: Any, **terms: Any) -> Any:
        client.close()
        return classify(*args, **terms)

    client._methods["ClassifyText"] = closed_first
    with pytest.raises(ConfigError, match="is closed; make another one"):
        client.classify("x")


def test_a_failure_that_came_before_the_close_is_told(server: FakeServer) -> None:
    client = Client(server.target)
    classify = client._methods["ClassifyText"]

    def closed_after(*args: Any, **terms: Any) -> Any:
        try:
            return classify(*args, **terms)
        finally:
            client.close()

    client._methods["ClassifyText"] = closed_after
    with pytest.raises(ModelNotFoundError):
        client.classify("x", model="nothing")


@pytest.mark.parametrize("method", OF_ONE_MODEL)
def test_a_models_name_that_is_no_unicode_is_refused(
    kind: str, server: FakeServer, method: str
) -> None:
    option = "name" if method == "get_model" else "model"
    with pytest.raises(InputError, match=r"model 'n\\udcff' is not valid Unicode.*list_models"):
        ask(kind, server.target, method, *CALLS[method], call_options={option: "n\udcff"})
    assert server.requests == []


def test_every_call_has_a_deadline_and_the_server_knows_it(kind: str, server: FakeServer) -> None:
    for method, args in (("classify", ["x"]), ("list_models", []), ("get_model", ["news"])):
        ask(kind, server.target, method, *args, timeout_s=20.0)
    assert all(left is not None and 10 < left < 21 for left in server.time_remaining_s)


def test_a_deadline_may_be_as_good_as_none(kind: str, server: FakeServer) -> None:
    for timeout_s in (1e10, 1e300):  # of which gRPC would make one that has passed
        assert ask(kind, server.target, "classify", "x", call_options={"timeout_s": timeout_s})


def test_a_server_that_does_not_answer_costs_no_more_than_the_deadline(
    kind: str, server: FakeServer
) -> None:
    server.hold.clear()
    with pytest.raises(DeadlineError, match=rf"no answer from {server.target} within 0\.2 s"):
        ask(kind, server.target, "classify", "x", call_options={"timeout_s": 0.2})


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
    with silent_port() as port:
        assert not ask(kind, f"127.0.0.1:{port}", "ready", clock=clock)
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
    told = "not ready within 3 s: no gRPC server answers at"
    with silent_port() as port, pytest.raises(NotReadyError, match=told):
        ask(
            kind, f"127.0.0.1:{port}", "wait_until_ready",
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
    server.models[0].choice_source = model_pb2.CHOICE_SOURCE_HOST
    server.models.append(model_pb2.Model(name="mail"))
    news, mail = ask(kind, server.target, "list_models")
    assert news == ask(kind, server.target, "get_model", "news")
    assert (news.name, news.version, news.state) == ("news", 1, ModelState.READY)
    assert news.labels == ("business", "sport")
    assert (news.certificate.verdict, news.certificate.rows) == ("PASS", 600)
    assert (news.choice_source, mail.choice_source) == ("HOST", "UNSPECIFIED")
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


def test_a_server_that_gives_too_few_answers_is_not_believed(kind: str, server: FakeServer) -> None:
    server.most_answers = 1
    with pytest.raises(ServiceError, match="1 answers to 2 texts"):
        ask(kind, server.target, "classify", ["a", "b"])


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
@pytest.mark.parametrize(
    ("versions", "major"),
    [(("protobuf<7",), "6"), (("protobuf>=7",), "7"), (oldest("client"), "6")],
    ids=["6", "7", "oldest"],
)
def test_the_client_extra_alone_calls_a_server(
    server: FakeServer, versions: tuple[str, ...], major: str
) -> None:
    python = lean_python("client", versions)
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
    assert (told.returncode, told.stdout.split()[0], told.stderr) == (0, "business", "")


def test_both_clients_are_called_alike() -> None:
    def methods(client: type) -> dict[str, Any]:
        return {
            name: [
                (each.name, each.kind, each.default)
                for each in signature(method).parameters.values()
            ]
            for name, method in vars(client).items()
            if isfunction(method) and not name.startswith("_")
        }

    assert len(methods(Client)) > 10
    assert methods(Client) == methods(AsyncClient)
    assert list(signature(Client).parameters) == list(signature(AsyncClient).parameters)


@pytest.mark.parametrize("of", [Client, AsyncClient])
def test_a_stream_of_one_thing_is_refused(of: type[Client | AsyncClient]) -> None:
    client = of("localhost:1")
    for method, given in (
        (client.stream_classify, "one text"),
        (client.stream_classify, b"an image"),
        (client.stream_feedback, Feedback("sport", "p")),
        (client.stream_feedback, "p"),
        (client.stream_classify, None),
    ):
        one = type(given).__name__
        with pytest.raises(InputError, match=f"(items|entries) is one {one}; .* give a list"):
            method(given)  # type: ignore[operator]
