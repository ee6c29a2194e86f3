"""EmbedText: what the model's head reads, by every way in."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from numpy.typing import NDArray

from edgewright.backends import get_backend
from edgewright.client import AsyncClient, Client
from edgewright.errors import InputError
from edgewright.oip import inference_pb2
from edgewright.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from edgewright.rpc_errors import STATUS_METADATA_KEY
from edgewright.v1.prediction_pb2 import EmbedImageRequest, EmbedTextRequest

from .bundles import LABELS, MAX_LENGTH, POISON, Recipe, preprocessor, random_texts
from .conftest import Gate, Launch, LoopThread, Running, until

FEATURED = Recipe(features=True)


@pytest.fixture
def running(publish: Callable[..., Path], launch: Launch) -> Running:
    """Two models that give features, and one that gives none."""
    path = publish(
        news=FEATURED, wire=Recipe(features=True, batch_invariant=False, seed=1), plain=Recipe()
    )
    return launch(path, state_dir=path / ".state")


def graph_file(running: Running, model: str) -> Path:
    return running.server.config.repository / model / "1" / "variants" / "fp32.onnx"


def expected(running: Running, texts: list[str], model: str = "news") -> NDArray[np.float32]:
    """By the file alone, every text by itself."""
    session = get_backend("onnxruntime").load(graph_file(running, model), threads=1)
    rows = [session.run(preprocessor()([text]).arrays, ["features"]) for text in texts]
    return np.concatenate([row["features"] for row in rows])


def embed(running: Running, texts: list[str], model: str = "news", **options: Any) -> Any:
    request = EmbedTextRequest(model=model, texts=texts, **options)
    return running.predictions.EmbedText(request, timeout=30)


def values(response: Any) -> NDArray[np.float32]:
    return np.array([each.values for each in response.embeddings], np.float32)


def reason(error: grpc.RpcError) -> str:
    from google.rpc.status_pb2 import Status

    trailers = dict(error.trailing_metadata())
    status, info = Status.FromString(trailers[STATUS_METADATA_KEY]), ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return str(info.reason)


@pytest.mark.parametrize("model", ["news", "wire"])
def test_a_batch_gets_what_each_text_gets_alone(running: Running, model: str) -> None:
    texts = random_texts(20)
    response = embed(running, texts, model)
    assert (response.model, response.version, response.dimension) == (model, 1, 8)
    np.testing.assert_allclose(values(response), expected(running, texts, model), atol=1e-6)
    alone = np.concatenate([values(embed(running, [text], model)) for text in texts])
    np.testing.assert_allclose(alone, values(response), atol=1e-6)


def test_embeddings_and_classifications_share_a_run_and_neither_changes(
    running: Running, gate: Callable[[], Gate]
) -> None:
    texts = random_texts(6)
    plain = running.classify(*texts, model="news")
    held = gate()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(running.classify, "bank", model="news")
        assert held.entered.wait(30)
        busy = len(held.runs)
        classified = pool.submit(running.classify, *texts, model="news")
        embedded = pool.submit(embed, running, texts)
        until(lambda: running.server.batcher.queue.rows >= 13)
        held.open.set()
        first.result(30)
        scores = [each.score for each in classified.result(30).classifications]
        found = values(embedded.result(30))
    assert sum(held.runs[busy:]) == 12
    np.testing.assert_allclose(scores, [each.score for each in plain.classifications], atol=1e-6)
    np.testing.assert_allclose(found, expected(running, texts), atol=1e-6)


def test_the_scores_are_to_the_bit_those_of_a_run_without_features(running: Running) -> None:
    model = running.server.registry.ready("news")
    rows = model.encode(random_texts(9))
    scores, extras = model.scores_with(rows, ("features", "logits"))
    assert scores.tobytes() == model.scores(rows).tobytes()
    assert {name: array.shape for name, array in extras.items()} == {
        "features": (9, 8),
        "logits": (9, 3),
    }


def test_normalised_vectors_have_the_length_one(running: Running) -> None:
    texts = random_texts(5)
    plain = expected(running, texts)
    found = values(embed(running, texts, normalize=True))
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found, plain / lengths, atol=1e-6)


def test_a_text_that_was_cut_says_so(running: Running) -> None:
    found = embed(running, ["bank", "bank " * (MAX_LENGTH + 5)])
    assert [each.truncated for each in found.embeddings] == [False, True]


def test_no_prediction_is_made_of_an_embedding(running: Running) -> None:
    embed(running, ["bank"])
    name = "edgewright_predictions_total"
    assert not any(running.metric(name, model="news", version="1", label=each) for each in LABELS)


@pytest.mark.parametrize(
    ("texts", "model", "message"),
    [
        ([], "news", "texts is empty"),
        (["bank", " "], "news", "texts[1] is empty"),
        (["a" * 200_000], "news", "texts[0] has 200000 characters"),
        (["a"] * 300, "news", "texts has 300 entries"),
        (["a"], "plain", "plain gives no features: its bundle has none; make it anew with"),
    ],
)
def test_bad_calls_are_named(running: Running, texts: list[str], model: str, message: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        embed(running, texts, model)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in raised.value.details()
    assert reason(raised.value) == "INPUT_INVALID"


def test_an_unknown_model_and_the_wrong_kind_are_named(running: Running) -> None:
    with pytest.raises(grpc.RpcError, match="no model 'nobody'"):
        embed(running, ["a"], "nobody")
    with pytest.raises(grpc.RpcError, match="news reads texts; call EmbedText"):
        running.predictions.EmbedImage(EmbedImageRequest(model="news", images=[b"x"]), timeout=30)


def test_features_that_are_no_numbers_are_an_error_and_counted(running: Running) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        embed(running, ["bank", POISON])
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert running.metric("edgewright_not_finite_rows_total", model="news", version="1") == 1
    assert len(embed(running, ["bank"]).embeddings) == 1


def test_a_call_whose_deadline_passes_is_not_computed(
    publish: Callable[..., Path], launch: Launch, gate: Callable[[], Gate]
) -> None:
    running = launch(publish(news=FEATURED), instances=1)
    held = gate()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(running.classify, "bank")
        assert held.entered.wait(30)
        with pytest.raises(grpc.RpcError) as raised:
            running.predictions.EmbedText(EmbedTextRequest(texts=["goal"] * 3), timeout=0.2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: running.server.batcher.queue.rows == 1)
        held.open.set()
        first.result(30)
    embed(running, ["bank", "law"], "news")
    assert held.runs == [1, 2]


def test_clients_embed_in_parts_and_in_order(running: Running, loop: LoopThread) -> None:
    texts, target = random_texts(150), f"127.0.0.1:{running.server.port}"
    with Client(target) as client:
        found = client.embed(texts, model="news", normalize=True)
        (single,) = client.embed(texts[7], model="news", normalize=True)
        with pytest.raises(InputError, match=r"texts\[70\]"):
            client.embed([*texts[:70], " "], model="news")
        with pytest.raises(InputError, match="reads texts"):
            client.embed_images(b"x", model="news")
    assert len(found) == 150
    np.testing.assert_allclose(found[7].values, single.values, atol=1e-6)
    assert not single.truncated

    async def twin() -> list[Any]:
        async with AsyncClient(target) as client:
            return await client.embed(texts, model="news", normalize=True)

    again = np.array([each.values for each in loop.run(twin())])
    np.testing.assert_allclose(again, [each.values for each in found], atol=1e-6)


def infer(running: Running, model: str, *outputs: str) -> Any:
    request = inference_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([b"bank shares", b"goal"])
    for name in outputs:
        request.outputs.add(name=name)
    return GRPCInferenceServiceStub(running.channel).ModelInfer(request, timeout=30)


def test_oip_gives_features_and_logits_to_those_who_ask(running: Running) -> None:
    usual = infer(running, "news")
    assert [each.name for each in usual.outputs] == ["label", "score", "scores", "prediction_id"]
    asked = infer(running, "news", "features", "scores", "logits")
    assert [(each.name, list(each.shape)) for each in asked.outputs] == [
        ("features", [2, 8]), ("scores", [2, 3]), ("logits", [2, 3]),
    ]  # fmt: skip
    features, scores, logits = (
        np.array(each.contents.fp32_contents).reshape(each.shape) for each in asked.outputs
    )
    np.testing.assert_allclose(features, expected(running, ["bank shares", "goal"]), atol=1e-6)
    powers = np.exp(logits)
    np.testing.assert_allclose(scores, powers / powers.sum(axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_array_equal(scores.ravel(), usual.outputs[2].contents.fp32_contents)


def test_oip_tells_who_has_features(running: Running) -> None:
    stub = GRPCInferenceServiceStub(running.channel)
    told = stub.ModelMetadata(inference_pb2.ModelMetadataRequest(name="news"), timeout=30)
    assert [(each.name, list(each.shape)) for each in told.outputs][4:] == [
        ("logits", [-1, 3]), ("features", [-1, 8]),
    ]  # fmt: skip
    with pytest.raises(grpc.RpcError, match="'features' is no output of plain"):
        infer(running, "plain", "features")


def test_http_gives_features_too(running: Running) -> None:
    body = {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["bank shares"]}],
        "outputs": [{"name": "features"}],
    }
    url = f"http://127.0.0.1:{running.server.metrics_port}/v2/models/news/infer"
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=30) as response:
        (output,) = json.load(response)["outputs"]
    assert output["shape"] == [1, 8]
    np.testing.assert_allclose([output["data"]], expected(running, ["bank shares"]), atol=1e-6)
