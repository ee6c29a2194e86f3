"""Odd requests over real sockets: only the right codes, nothing in the log, nothing left behind.

CI sends a few thousand; EDGEWRIGHT_FUZZ=100000 sends that many, EDGEWRIGHT_FUZZ_SEED others.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edgewright.oip import inference_pb2
from edgewright.repository import Repository
from edgewright.v1 import feedback_pb2, model_pb2, prediction_pb2

from .bundles import Recipe, make_bundle
from .conftest import Launch, Running, until
from .image_bundles import SIDE, make_image_bundle, png
from .mutations import odd_bytes, odd_fields

Code = grpc.StatusCode
REQUESTS = int(os.environ.get("EDGEWRIGHT_FUZZ", "4000"))
SEED = int(os.environ.get("EDGEWRIGHT_FUZZ_SEED", "1"))
RIGHT_CODES = {
    Code.OK, Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED,
}  # fmt: skip
RIGHT_STATUSES = {b"200", b"400", b"404", b"405", b"408", b"413", b"415", b"429", b"431", b"504"}
AT_ONCE = 16


def tensor(name: str, datatype: str, *shape: int) -> Any:
    return inference_pb2.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=shape
    )


def infer(model: str, *tensors: Any, raw: tuple[bytes, ...] = ()) -> Any:
    return inference_pb2.ModelInferRequest(model_name=model, inputs=tensors, raw_input_contents=raw)


def element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


RED = png((255, 0, 0))
TEXT = tensor("text", "BYTES", 1)
TEXT.contents.bytes_contents.append(b"bank shares")
IDS, MASK = tensor("input_ids", "INT64", 1, 3), tensor("attention_mask", "INT64", 1, 3)
IDS.contents.int64_contents.extend([2, 5, 3])
MASK.contents.int64_contents.extend([1, 1, 1])
ROW = np.array([2, 5, 3], np.int64).tobytes()
PIXELS = np.zeros((1, 3, SIDE, SIDE), np.float32).tobytes()
ENTRY = feedback_pb2.FeedbackEntry(entry_id="a" * 32, prediction_id="b" * 32, label="sport")
OIP, OURS = "/inference.GRPCInferenceService/", "/edgewright.v1."
MESSAGES: list[tuple[str, Any]] = [
    (OURS + "PredictionService/ClassifyText",
     prediction_pb2.ClassifyTextRequest(model="news", texts=["bank shares", "goal"], top_k=2)),
    (OURS + "PredictionService/ClassifyImage",
     prediction_pb2.ClassifyImageRequest(model="pets", images=[RED])),
    (OURS + "PredictionService/EmbedText",
     prediction_pb2.EmbedTextRequest(model="news", texts=["bank", "goal"], normalize=True)),
    (OURS + "PredictionService/EmbedImage",
     prediction_pb2.EmbedImageRequest(model="pets", images=[RED])),
    (OURS + "ModelService/GetModel", model_pb2.GetModelRequest(model="news")),
    (OURS + "ModelService/ListModels", model_pb2.ListModelsRequest()),
    (OURS + "FeedbackService/SendFeedback", feedback_pb2.SendFeedbackRequest(entries=[ENTRY])),
    (OIP + "ModelInfer", infer("news", TEXT)),
    (OIP + "ModelInfer", infer("news", tensor("text", "BYTES", 1), raw=(element(b"goal"),))),
    (OIP + "ModelInfer", infer("news", IDS, MASK)),
    (OIP + "ModelInfer", infer("news", tensor("input_ids", "INT64", 1, 3),
                               tensor("attention_mask", "INT64", 1, 3), raw=(ROW, ROW))),
    (OIP + "ModelInfer", infer("pets", tensor("image", "BYTES", 1), raw=(element(RED),))),
    (OIP + "ModelInfer", infer("pets", tensor("pixel_values", "FP32", 1, 3, SIDE, SIDE),
                               raw=(PIXELS,))),
    (OIP + "ModelMetadata", inference_pb2.ModelMetadataRequest(name="news", version="1")),
    (OIP + "ModelReady", inference_pb2.ModelReadyRequest(name="news")),
    (OIP + "ModelConfig", inference_pb2.ModelConfigRequest(name="pets")),
    (OIP + "RepositoryIndex", inference_pb2.RepositoryIndexRequest(ready=True)),
    (OIP + "ServerMetadata", inference_pb2.ServerMetadataRequest()),
]  # fmt: skip
STREAMS: list[tuple[str, Any]] = [
    (OURS + "PredictionService/StreamClassify",
     prediction_pb2.StreamClassifyRequest(
         model="news", items=[prediction_pb2.StreamItem(text="bank")])),
    (OURS + "FeedbackService/StreamFeedback", feedback_pb2.StreamFeedbackRequest(entries=[ENTRY])),
]  # fmt: skip
BODIES = [
    ("/v1/models/news:classify", {"texts": ["bank"], "top_k": 1}),
    ("/v1/models/pets:classify", {"images": ["aGVsbG8="]}),
    ("/v2/models/news/infer",
     {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["bank"]}],
      "outputs": [{"name": "label"}]}),
    ("/v2/models/news/versions/1/infer",
     {"id": "x", "inputs": [
         {"name": "input_ids", "datatype": "INT64", "shape": [1, 3], "data": [2, 5, 3]},
         {"name": "attention_mask", "datatype": "INT64", "shape": [1, 3], "data": [[1, 1, 1]]}]}),
]  # fmt: skip


@pytest.fixture
def running(launch: Launch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Running]:
    """A server of texts and images with a store; afterwards it must be as it was."""
    repository = Repository(tmp_path / "repository")
    repository.publish(make_bundle(tmp_path / "news", Recipe(features=True)), "news")
    repository.publish(make_image_bundle(tmp_path / "pets"), "pets")
    store = f"sqlite:///{tmp_path / 'feedback.db'}"
    started = launch(repository.path, feedback=store, log_inputs="all")
    started.classify("bank", model="news")
    until(lambda: started.server.in_flight == 0)
    files = sorted(path for path in tmp_path.rglob("*"))
    tasks = task_count(started)
    with caplog.at_level(logging.WARNING):
        yield started
    until(lambda: started.server.in_flight == 0)
    until(lambda: started.server.batcher.queue.rows == 0)
    until(lambda: task_count(started) <= tasks)
    assert started.server.is_ready()
    assert started.classify("bank", model="news").classifications
    errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert not errors, errors[0].getMessage()
    new = {path.suffix for path in set(tmp_path.rglob("*")) - set(files)}
    assert new <= {".db-wal", ".db-shm", ".db-journal"}, "a request wrote a file"


def task_count(running: Running) -> int:
    async def count() -> int:
        return len(asyncio.all_tasks())

    return running.loop.run(count())


def odd_message(rng: random.Random, message: Any) -> bytes:
    copy = type(message)()
    copy.CopyFrom(message)
    if rng.random() < 0.6:
        return odd_fields(rng, copy)
    return odd_bytes(rng, copy.SerializeToString(), [m.SerializeToString() for _, m in MESSAGES])


def code_of(call: Any) -> grpc.StatusCode:
    try:
        call()
        return Code.OK
    except grpc.RpcError as error:
        return error.code()


def in_parallel(count: int, one: Any) -> Counter[Any]:
    """How ``one(rng)`` came out, ``count`` times over; the seed of what came out wrong is told."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return Counter(
            pool.map(lambda number: one(random.Random(SEED * 10**9 + number)), range(count))
        )


def test_odd_messages_get_the_right_codes(running: Running) -> None:
    def one(rng: random.Random) -> grpc.StatusCode:
        method, message = rng.choice(MESSAGES)
        data = odd_message(rng, message)
        code = code_of(lambda: running.channel.unary_unary(method)(data, timeout=30))
        assert code in RIGHT_CODES, (code, method, data)
        return code

    codes = in_parallel(REQUESTS * 6 // 10, one)
    print(codes)
    assert codes[Code.OK] > 0
    assert codes[Code.INVALID_ARGUMENT] > 0


def test_odd_messages_in_streams_get_the_right_codes(running: Running) -> None:
    def one(rng: random.Random) -> grpc.StatusCode:
        method, message = rng.choice(STREAMS)
        sent = [odd_message(rng, message) for _ in range(rng.randint(1, 4))]
        call = running.channel.stream_stream(method)
        code = code_of(lambda: list(call(iter(sent), timeout=30)))
        assert code in RIGHT_CODES, (code, method, sent)
        return code

    print(in_parallel(REQUESTS // 10, one))


def status_of(running: Running, data: bytes) -> bytes:
    """The first status that the port answers to ``data``; empty where it only closes.

    The client does not close its side first: that would be a caller who has left.
    """
    port = running.server.metrics_port
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(data)
            told = connection.recv(4096)
        except (ConnectionResetError, BrokenPipeError):
            return b""
    return told[9:12]


def odd_json(rng: random.Random, value: Any) -> Any:
    """``value`` with something else somewhere."""
    if rng.random() < 0.3 or not isinstance(value, dict | list) or not value:
        odd = (
            None,
            -1,
            2**63,
            1e308,
            float("nan"),
            True,
            "",
            "\ud800",
            "x" * 3000,
            [],
            {},
            [[]],
            "news",
        )
        return rng.choice(odd)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        return [odd_json(rng, each) if at == place else each for at, each in enumerate(value)]
    key = rng.choice(list(value))
    name = key if rng.random() < 0.8 else "other"
    return {**value, name: odd_json(rng, value[key])}


def http_request(rng: random.Random) -> bytes:
    path, body = rng.choice(BODIES)
    kind = rng.random()
    data = json.dumps(odd_json(rng, body) if kind < 0.5 else body).encode("utf-8", "surrogatepass")
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    if kind < 0.5:
        return head + data
    get = b"GET /v2/models/news HTTP/1.1\r\nHost: x\r\nX-Timeout-Ms: 10\r\n\r\n"
    return odd_bytes(rng, head + data if kind < 0.9 else get, [get, head])


def test_odd_requests_over_http_get_the_right_statuses(running: Running) -> None:
    running.server._http._head_s = running.server._http._body_s = 0.5  # what is cut off waits

    def one(rng: random.Random) -> bytes:
        data = http_request(rng)
        status = status_of(running, data)
        assert not status or status in RIGHT_STATUSES, (status, data)
        return status

    statuses = in_parallel(REQUESTS * 3 // 10, one)
    print(statuses)
    assert statuses[b"200"] > 0
    assert statuses[b"400"] > 0
