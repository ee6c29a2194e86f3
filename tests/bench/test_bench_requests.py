from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image

from edgewright.bench import requests
from edgewright.bench.inputs import Inputs, synthetic_images, synthetic_texts
from edgewright.bench.requests import edgewright_requests
from edgewright.errors import ConfigError
from edgewright.v1 import prediction_pb2
from edgewright.v1.prediction_pb2 import ClassifyImageRequest, ClassifyTextRequest


def test_texts_have_as_many_words_as_asked_and_are_their_seeds() -> None:
    texts = synthetic_texts(12, seed=1).items
    assert all(len(str(each).split()) == 12 for each in texts)
    assert len(set(texts)) == len(texts) == 256
    assert texts == synthetic_texts(12, seed=1).items
    assert texts != synthetic_texts(12, seed=2).items


@pytest.mark.parametrize("size", [1, 13, 224])
def test_images_are_png_files_of_their_size(size: int) -> None:
    images = synthetic_images(size, seed=0).items
    for each in images:
        assert isinstance(each, bytes)
        with Image.open(io.BytesIO(each)) as image:
            image.load()
            assert (image.format, image.size, image.mode) == ("PNG", (size, size), "RGB")
    assert len(set(images)) == len(images) == 16
    assert images == synthetic_images(size, seed=0).items


def test_every_text_is_sent_in_turn_and_the_last_call_is_filled_from_the_first() -> None:
    made = edgewright_requests(Inputs(["a", "b", "ü", "d", "e"], ""), rows=2, model="news")
    assert made.method == "/edgewright.v1.PredictionService/ClassifyText"
    parsed = [ClassifyTextRequest.FromString(each) for each in made.messages]
    assert [list(each.texts) for each in parsed] == [["a", "b"], ["ü", "d"], ["e", "a"]]
    assert {each.model for each in parsed} == {"news"}
    more = edgewright_requests(Inputs(["a", "b"], ""), rows=5, model="")
    assert [list(ClassifyTextRequest.FromString(each).texts) for each in more.messages] == [
        ["a", "b", "a", "b", "a"]
    ]


def test_images_are_sent_as_they_are() -> None:
    made = edgewright_requests(Inputs([b"\xff\x00", b"png"], ""), rows=1, model="pets")
    assert made.method == "/edgewright.v1.PredictionService/ClassifyImage"
    assert [list(ClassifyImageRequest.FromString(each).images) for each in made.messages] == [
        [b"\xff\x00"], [b"png"],
    ]  # fmt: skip


def test_the_protocol_of_others_gets_bytes_with_their_lengths() -> None:
    """In a process of its own: tests load other definitions of `inference`."""
    code = """
from edgewright.bench.inputs import Inputs
from edgewright.bench.requests import oip_requests
from edgewright.oip.inference_pb2 import ModelInferRequest
for rank, shape in ((1, [2]), (2, [2, 1])):
    made = oip_requests(Inputs(["ü", "ab"], ""), 2, "news", "text", rank)
    (message,) = map(ModelInferRequest.FromString, made.messages)
    (tensor,) = message.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("text", "BYTES", shape)
    (raw,) = message.raw_input_contents
    assert raw == b"\\x02\\0\\0\\0" + "ü".encode() + b"\\x02\\0\\0\\0ab"
    assert made.method == "/inference.GRPCInferenceService/ModelInfer"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_held_in_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_REQUESTS", 3)
    assert len(edgewright_requests(Inputs(["a"] * 100, ""), 1, "").messages) == 3
    monkeypatch.setattr(requests, "MAX_BYTES", 1000)
    with pytest.raises(ConfigError, match="held in memory"):
        edgewright_requests(Inputs([b"x" * 600] * 2, ""), 1, "")


def test_a_call_that_is_too_large_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def message(*_: Any, texts: list[str], **__: Any) -> Any:
        made.append(len(texts))
        return prediction_pb2.ClassifyTextResponse()

    monkeypatch.setattr(prediction_pb2, "ClassifyTextRequest", message)
    with pytest.raises(ConfigError, match="fewer --rows-per-call"):
        edgewright_requests(Inputs(["x" * 1_000_000], ""), 100_000, "")
    assert made == []
