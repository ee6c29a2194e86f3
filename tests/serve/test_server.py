"""A server on real sockets, called as any client calls it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from edgewright.backends import get_backend, softmax
from edgewright.errors import ConfigError, ModelNotFoundError
from edgewright.rpc_errors import STATUS_METADATA_KEY
from edgewright.serve.call_edge import left_by_caller
from edgewright.serve.config import ServeConfig
from edgewright.serve.registry import Lineup
from edgewright.serve.server import Server
from edgewright.v1 import model_pb2
from edgewright.v1.prediction_pb2 import ClassifyTextRequest

from .bundles import LABELS, POISON, Recipe, preprocessor, random_texts
from .conftest import Gate, Launch, LoopThread, Running, until

Code = grpc.StatusCode
METHOD = "edgewright.v1.PredictionService/ClassifyText"


def details(error: grpc.RpcError) -> tuple[str, list[tuple[str, str]], float | None]:
    """Reason, field violations, and seconds to wait, of a failed call."""
    (packed,) = (value for key, value in error.trailing_metadata() if key == STATUS_METADATA_KEY)
    reason, fields, retry = "", [], None
    for detail in Status.FromString(packed).details:
        info, request, delay = ErrorInfo(), BadRequest(), RetryInfo()
        if detail.Unpack(info):
            assert info.domain == "edgewright"
            reason = info.reason
        if detail.Unpack(request):
            fields = [(each.field, each.description) for each in request.field_violations]
        if detail.Unpack(delay):
            retry = delay.retry_delay.ToNanoseconds() / 1e9
    return reason, fields, retry


def requests(running: Running, code: str) -> float:
    return running.metric("edgewright_requests_total", method=METHOD, code=code)


def test_answers_equal_direct_scores(launch: Launch, bundle: Path) -> None:
    texts = random_texts(50)
    answer = launch().classify(*texts, model="news")
    session = get_backend("onnxruntime").load(bundle / "variants" / "fp32.onnx", threads=1)
    expected = softmax(session.run(preprocessor()(texts).arrays)["logits"])
    assert (answer.model, answer.version) == ("news", 1)
    assert len(answer.classifications) == 50
    for found, scores in zip(answer.classifications, expected, strict=True):
        by_label = {each.label: each.score for each in found.scores}
        assert list(by_label.values()) == sorted(by_label.values(), reverse=True)
        np.testing.assert_allclose([by_label[label] for label in LABELS], scores, atol=1e-6)
        assert (found.label, found.score) == (found.scores[0].label, found.scores[0].score)
    ids = [each.prediction_id for each in answer.classifications]
    assert ids == sorted(set(ids))


def test_top_k_gives_the_best_and_truncation_is_told(launch: Launch) -> None:
    running = launch()
    (best,) = running.classify("bank shares", top_k=1).classifications
    (every,) = running.classify("bank shares").classifications
    assert list(best.scores) == list(every.scores)[:1]
    answer = running.classify("goal " * 14, "goal " * 15).classifications
    assert [each.truncated for each in answer] == [False, True]


def test_callers_are_batched_and_each_gets_its_own(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    running = launch(max_batch=16)
    texts = random_texts(40)
    alone = [running.classify(text).classifications[0] for text in texts]
    held = gate()
    with ThreadPoolExecutor(40) as pool:
        calls = [pool.submit(running.classify, text) for text in texts]
        until(lambda: running.server.batcher.queue.rows == 40)
        held.open.set()
        answers = [call.result().classifications[0] for call in calls]
    assert [each.label for each in answers] == [each.label for each in alone]
    np.testing.assert_allclose(
        [each.score for each in answers], [each.score for each in alone], atol=1e-6
    )
    assert 1 < max(held.runs) <= 16


def test_a_variant_that_depends_on_its_batch_runs_row_by_row(
    launch: Launch, publish: Callable[..., Path], gate: Callable[[], Gate]
) -> None:
    running = launch(publish(news=Recipe(batch_invariant=False)))
    texts = random_texts(12)
    alone = [running.classify(text).classifications[0].score for text in texts]
    held = gate()
    held.open.set()
    together = [each.score for each in running.classify(*texts).classifications]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert held.runs == [1] * 12


@pytest.mark.parametrize(
    ("request_fields", "code", "reason", "field"),
    [
        ({"texts": []}, Code.INVALID_ARGUMENT, "INPUT_INVALID", "texts"),
        ({"texts": ["a", "b", "c", " \n"]}, Code.INVALID_ARGUMENT, "INPUT_INVALID", "texts[3]"),
        ({"texts": ["x" * 10_485_760]}, Code.INVALID_ARGUMENT, "INPUT_INVALID", "texts[0]"),
        ({"texts": ["a"] * 257}, Code.INVALID_ARGUMENT, "INPUT_INVALID", "texts"),
        ({"texts": ["a"], "top_k": 4}, Code.INVALID_ARGUMENT, "INPUT_INVALID", "top_k"),
        ({"texts": ["a"], "top_k": -1}, Code.INVALID_ARGUMENT, "INPUT_INVALID", "top_k"),
        ({"texts": ["a"], "model": "wine"}, Code.NOT_FOUND, "MODEL_NOT_FOUND", None),
        ({"texts": ["a"], "model": "w" * 100_000}, Code.NOT_FOUND, "MODEL_NOT_FOUND", None),
        ({"texts": ["a"], "version": 7}, Code.NOT_FOUND, "MODEL_NOT_FOUND", None),
        ({"texts": ["a"], "version": -1}, Code.NOT_FOUND, "MODEL_NOT_FOUND", None),
        ({"texts": [POISON]}, Code.INTERNAL, "INTERNAL", None),
    ],
)
def test_bad_calls_get_their_code_reason_and_field(
    launch: Launch,
    request_fields: dict[str, object],
    code: grpc.StatusCode,
    reason: str,
    field: str | None,
) -> None:
    running = launch()
    with pytest.raises(grpc.RpcError) as failure:
        running.predictions.ClassifyText(ClassifyTextRequest(**request_fields), timeout=30)
    found, fields, _ = details(failure.value)
    assert (failure.value.code(), found) == (code, reason)
    assert [name for name, _ in fields] == ([field] if field else [])
    assert running.metric("edgewright_rejected_total", reason=reason) == 1
    until(lambda: requests(running, code.name) == 1)
    assert running.classify("still alive").classifications


def test_a_text_over_the_limit_is_told_the_limit(launch: Launch) -> None:
    with pytest.raises(grpc.RpcError, match="at most 100000 are taken"):
        launch().classify("x" * 10_485_760)


def test_a_message_over_grpcs_limit_is_refused_and_nothing_breaks(launch: Launch) -> None:
    running = launch(max_message_mb=1)
    with pytest.raises(grpc.RpcError) as failure:
        running.classify("x" * 2_000_000)
    assert failure.value.code() is Code.RESOURCE_EXHAUSTED
    assert running.classify("still alive").classifications


def test_a_model_that_gives_no_numbers_is_counted_and_its_reason_kept_in_the_log(
    launch: Launch, caplog: pytest.LogCaptureFixture
) -> None:
    running = launch()
    with pytest.raises(grpc.RpcError) as failure:
        running.classify("bank", POISON)
    told = "internal error; the server's log has the details; request id "
    assert failure.value.details().startswith(told)
    assert running.metric("edgewright_not_finite_rows_total", model="news") == 1
    assert "news gave no finite scores for text 1" in caplog.text


def test_several_models_are_served_by_name(launch: Launch, publish: Callable[..., Path]) -> None:
    running = launch(publish(news=Recipe(), wine=Recipe(seed=1)))
    assert running.classify("bank", model="wine").model == "wine"
    with ThreadPoolExecutor(8) as pool:
        names = ["news", "wine"] * 10
        answers = list(pool.map(lambda name: running.classify("bank", model=name), names))
    assert [answer.model for answer in answers] == names
    assert len({answer.classifications[0].score for answer in answers}) == 2
    with pytest.raises(grpc.RpcError) as failure:
        running.classify("bank")
    assert details(failure.value)[1] == [("model", "model is empty; name one of: news, wine")]


def test_a_full_queue_says_when_to_try_again(launch: Launch, gate: Callable[[], Gate]) -> None:
    running = launch(queue_size=4, max_texts=4)
    held = gate()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(running.classify, *["bank"] * 4)
        until(held.entered.is_set)
        with pytest.raises(grpc.RpcError) as failure:
            running.classify("goal")
        held.open.set()
        waiting.result()
    reason, _, retry_s = details(failure.value)
    assert (failure.value.code(), reason) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert retry_s is not None
    assert retry_s > 0
    assert running.metric("edgewright_queue_rows") == 0


def test_expired_and_cancelled_calls_are_never_computed(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    running = launch(instances=1)
    held = gate()
    request = ClassifyTextRequest(texts=["bank"])
    first = running.predictions.ClassifyText.future(request, timeout=30)
    until(held.entered.is_set)
    cancelled = running.predictions.ClassifyText.future(request, timeout=30)
    until(lambda: running.server.batcher.queue.rows == 2)
    cancelled.cancel()
    until(lambda: requests(running, "CANCELLED") == 1)

    def one_expires() -> bool:
        """Whether the server has seen it; on a slow machine it may expire on its way there."""
        expired = running.predictions.ClassifyText.future(request, timeout=0.5)
        assert expired.exception().code() is Code.DEADLINE_EXCEEDED
        # Which of them it is counted as hangs on how long it was on its way.
        return requests(running, "CANCELLED") + requests(running, "DEADLINE_EXCEEDED") > 1

    until(one_expires)
    held.open.set()
    assert first.result().classifications
    until(lambda: running.server.batcher.queue.rows == 0)
    assert held.runs == [1]


@pytest.mark.parametrize(
    ("left_s", "spent_s", "code"),
    [
        (None, 1.0, Code.CANCELLED),
        (0.0, 2.0, Code.DEADLINE_EXCEEDED),
        (0.055, 2.0, Code.DEADLINE_EXCEEDED),  # gRPC makes 1.996 s 2 s
        (0.9, 99.1, Code.DEADLINE_EXCEEDED),  # and 99.1 s 100 s
        (0.9, 10.0, Code.CANCELLED),
        (0.2, 0.0, Code.CANCELLED),
    ],
)
def test_a_caller_who_leaves_at_his_deadline_has_not_cancelled(
    left_s: float | None, spent_s: float, code: grpc.StatusCode
) -> None:
    assert left_by_caller(left_s, spent_s) is code


def test_a_client_that_vanishes_leaves_nothing_behind(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    running = launch()
    held = gate()
    channel = grpc.insecure_channel(
        f"127.0.0.1:{running.server.port}", options=[("grpc.use_local_subchannel_pool", 1)]
    )
    stub = type(running.predictions)(channel)
    calls = [stub.ClassifyText.future(ClassifyTextRequest(texts=["bank"])) for _ in range(5)]
    until(lambda: running.server.batcher.queue.rows == 5)
    channel.close()
    assert all(call.code() is Code.CANCELLED for call in calls)
    until(lambda: running.metric("edgewright_requests_in_flight") == 0)
    held.open.set()
    until(lambda: running.server.batcher.queue.rows == 0)
    assert running.classify("still alive").classifications


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64, b""])
def test_garbage_on_the_port_does_no_harm(launch: Launch, garbage: bytes) -> None:
    running = launch()
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=30) as connection:
        connection.sendall(garbage)
    assert running.classify("still alive").classifications


def test_a_message_that_is_no_protobuf_is_refused(launch: Launch) -> None:
    running = launch()
    call = running.channel.unary_unary(f"/{METHOD}")
    with pytest.raises(grpc.RpcError) as failure:
        call(b"\xff\xff\xff", timeout=30)
    assert failure.value.code() is Code.INVALID_ARGUMENT
    assert details(failure.value)[0] == "INPUT_INVALID"
    assert running.classify("still alive").classifications


def test_a_method_that_does_not_exist_is_unimplemented(launch: Launch) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        launch().channel.unary_unary("/edgewright.v1.PredictionService/Guess")(b"", timeout=30)
    assert failure.value.code() is Code.UNIMPLEMENTED


def test_models_tell_what_is_proven_of_them(launch: Launch) -> None:
    running = launch()
    (model,) = running.models.ListModels(model_pb2.ListModelsRequest()).models
    assert running.models.GetModel(model_pb2.GetModelRequest(model="news")).model == model
    assert (model.name, model.version, model.task) == ("news", 1, "text-classification")
    assert model.state == model_pb2.MODEL_STATE_READY
    assert tuple(model.labels) == LABELS
    assert model.variant == model.chosen_variant == "onnxruntime-fp32"
    assert model.choice_source == model_pb2.CHOICE_SOURCE_BUNDLE
    assert model.runtime == get_backend("onnxruntime").runtime()
    assert len(model.manifest_sha256) == 64
    assert model.max_length_tokens == 16
    assert model.certificate == model_pb2.Certificate(
        verdict=model_pb2.VERDICT_PASS,
        loss_upper_bound=0.008,
        budget=0.01,
        error_rate=0.03,
        rows=400,
    )
    with pytest.raises(grpc.RpcError) as failure:
        running.models.GetModel(model_pb2.GetModelRequest(model="wine"))
    assert failure.value.code() is Code.NOT_FOUND


def test_a_verdict_that_does_not_hold_here_is_told(
    launch: Launch, publish: Callable[..., Path]
) -> None:
    running = launch(publish(news=Recipe(isa="x86_64-another")))
    (model,) = running.models.ListModels(model_pb2.ListModelsRequest()).models
    assert model.certificate.verdict == model_pb2.VERDICT_UNVERIFIED


def test_while_it_loads_it_answers_probes_and_refuses_calls(launch: Launch) -> None:
    running = launch(load=False)
    running.server.registry.put(Lineup("news", 1))
    with pytest.raises(grpc.RpcError) as failure:
        running.classify("bank")
    assert (failure.value.code(), details(failure.value)[0]) == (
        Code.UNAVAILABLE,
        "MODEL_NOT_READY",
    )
    (model,) = running.models.ListModels(model_pb2.ListModelsRequest()).models
    assert (model.name, model.state) == ("news", model_pb2.MODEL_STATE_LOADING)
    running.load()
    assert running.classify("bank").classifications


def test_reflection_lists_the_services(launch: Launch) -> None:
    stub = ServerReflectionStub(launch(reflection=True).channel)
    (answer,) = stub.ServerReflectionInfo(iter([ServerReflectionRequest(list_services="")]))
    assert {service.name for service in answer.list_services_response.service} == {
        "edgewright.v1.PredictionService",
        "edgewright.v1.ModelService",
        "edgewright.v1.FeedbackService",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    request = ServerReflectionRequest(file_containing_symbol="edgewright.v1.PredictionService")
    (answer,) = stub.ServerReflectionInfo(iter([request]))
    assert answer.file_descriptor_response.file_descriptor_proto


def test_nothing_is_listed_unless_asked_for(launch: Launch) -> None:
    stub = ServerReflectionStub(launch().channel)
    with pytest.raises(grpc.RpcError) as failure:
        list(stub.ServerReflectionInfo(iter([ServerReflectionRequest(list_services="")])))
    assert failure.value.code() is Code.UNIMPLEMENTED


def test_an_empty_repository_is_refused(launch: Launch, tmp_path: Path) -> None:
    running = launch(tmp_path, load=False)
    with pytest.raises(ModelNotFoundError, match="edgewright publish BUNDLE"):
        running.load()


def test_two_servers_never_share_a_port(launch: Launch) -> None:
    taken = launch(load=False).server.port
    with pytest.raises(ConfigError, match=f"--port {taken} on 127.0.0.1 cannot be had"):
        launch(load=False, port=taken)


@pytest.mark.parametrize("option", ["port", "metrics_port"])
def test_a_port_in_use_is_refused_by_its_option(
    loop: LoopThread, repository: Path, option: str
) -> None:
    async def build(config: ServeConfig) -> None:
        Server(config)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"port": 0, "metrics_port": 0, option: port}
        with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')} {port} on 127.0.0.1"):
            loop.run(build(ServeConfig(repository, host="127.0.0.1", **ports)))
