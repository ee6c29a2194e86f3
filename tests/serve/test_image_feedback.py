"""Images that a running server classifies, kept as they came beside their predictions."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edgewright.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from edgewright.repository import Repository
from edgewright.v1.prediction_pb2 import ClassifyImageRequest

from .conftest import Launch, Running
from .databases import small_file_system
from .image_bundles import SIDE, make_image_bundle, png
from .test_feedback_service import new, rows, send, statuses, until
from .test_oip_service import raw, request, tensor

KEPT = (
    "SELECT p.prediction_id, i.content FROM edgewright_predictions p "
    "LEFT JOIN edgewright_images i ON i.sha256 = p.image"
)
Serve = Callable[..., Running]


@pytest.fixture
def serve(launch: Launch, tmp_path: Path) -> Serve:
    Repository(tmp_path / "r").publish(make_image_bundle(tmp_path / "b"), "colours")

    def start(url: str, inputs: str) -> Running:
        return launch(tmp_path / "r", feedback=url, log_inputs=inputs)

    return start


def classify(running: Running, *images: bytes) -> list[str]:
    """The ids of the predictions."""
    call = ClassifyImageRequest(images=images)
    answer = running.predictions.ClassifyImage(call, timeout=30)
    return [each.prediction_id for each in answer.classifications]


def infer(running: Running, given: Any, data: bytes) -> str:
    """The same by the Open Inference Protocol, of one row."""
    call = request([given], [data], "colours")
    answer = GRPCInferenceServiceStub(running.channel).ModelInfer(call, timeout=30)
    outputs = dict(zip((each.name for each in answer.outputs), answer.raw_output_contents))  # noqa: B905
    return outputs["prediction_id"][4:].decode()


def post(running: Running, image: bytes) -> str:
    """The same by HTTP."""
    url = f"http://127.0.0.1:{running.server.metrics_port}/v1/models/colours:classify"
    body = json.dumps({"images": [base64.b64encode(image).decode()]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
        return str(json.load(answer)["classifications"][0]["prediction_id"])


def written(running: Running) -> float:
    return running.metric("edgewright_logged_predictions_total", outcome="written")


def test_files_are_kept_however_they_come_and_tensors_are_not(serve: Serve, store_url: str) -> None:
    running = serve(store_url, "all")
    red, green = png((200, 0, 0)), png((0, 200, 0))
    expected: dict[str, bytes | None] = dict(
        zip(classify(running, red, green, red), (red, green, red), strict=True)
    )
    expected[infer(running, tensor("image", "BYTES", [1]), raw(green))] = green
    expected[post(running, red)] = red
    pixels = np.zeros((1, 3, SIDE, SIDE), np.float32)
    given = tensor("pixel_values", "FP32", list(pixels.shape))
    expected[infer(running, given, pixels.tobytes())] = None
    until(lambda: written(running) == 6)
    kept = {key: data if data is None else bytes(data) for key, data in rows(store_url, KEPT)}
    assert kept == expected
    assert rows(store_url, "SELECT count(*) FROM edgewright_images") == [(2,)]


def test_without_log_inputs_no_image_is_kept(serve: Serve, store_url: str) -> None:
    running = serve(store_url, "off")
    ids = classify(running, *[png((shade, 0, 0)) for shade in range(100)])
    until(lambda: written(running) == 100)
    assert statuses(send(running, new(ids[0], "green"))) == ["STORED"]
    assert rows(store_url, "SELECT count(*) FROM edgewright_images") == [(0,)]


def test_images_that_fill_the_disk_hold_up_no_prediction(serve: Serve, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", "2m") as small:
        url = f"sqlite:///{small / 'feedback.db'}"
        running = serve(url, "all")
        pictures = [png((index, 0, 0)) + bytes([index]) * (200 << 10) for index in range(20)]
        for each in pictures:  # twice what there is room for
            assert classify(running, each)
        with pytest.raises(grpc.RpcError) as refused:
            for _ in range(50):
                send(running, *(new(note="x" * 4000, label="green") for _ in range(20)))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert classify(running, pictures[0])
        assert written(running) < 20
        running.loop.run(running.server.drain())


def test_the_bytes_are_those_that_came(serve: Serve, store_url: str) -> None:
    running = serve(store_url, "all")
    picture = png((1, 2, 3)) + b"what follows a picture, \0 included"
    classify(running, picture)
    until(lambda: written(running) == 1)
    ((key, content),) = rows(store_url, "SELECT sha256, content FROM edgewright_images")
    assert (key, bytes(content)) == (sha256(picture).hexdigest(), picture)
