"""Names that a request gives are looked up among the models; they never reach the disk."""

from __future__ import annotations

import sys
import urllib.parse
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from edgewright.oip import inference_pb2
from edgewright.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from edgewright.v1 import model_pb2
from edgewright.v1.prediction_pb2 import ClassifyTextRequest

from .conftest import Launch
from .test_tokens import fetch

NAMES = ("../nowhere", "news/../nowhere", "/etc/passwd", "..//..", "nowhere\0", "%2e%2e%2fnews")
_seen: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in ("open", "os.listdir", "os.scandir", "os.stat", "os.mkdir"):
        _seen.append(str(arguments[0]))


@pytest.fixture(scope="module", autouse=True)
def audited() -> None:
    """A hook can never be taken away; it does nothing while no test watches."""
    sys.addaudithook(_hook)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Every path that this process opens or lists meanwhile."""
    global _seen
    _seen = []
    yield _seen
    _seen = None


def test_a_name_is_no_path(launch: Launch, opened: list[str]) -> None:
    running = launch()
    oip = GRPCInferenceServiceStub(running.channel)
    calls = [
        lambda name: running.predictions.ClassifyText(ClassifyTextRequest(model=name, texts=["a"])),
        lambda name: running.models.GetModel(model_pb2.GetModelRequest(model=name)),
        lambda name: oip.ModelMetadata(inference_pb2.ModelMetadataRequest(name=name)),
        lambda name: oip.ModelMetadata(
            inference_pb2.ModelMetadataRequest(name="news", version=name)
        ),
        lambda name: oip.ModelConfig(inference_pb2.ModelConfigRequest(name=name)),
        lambda name: oip.ModelInfer(inference_pb2.ModelInferRequest(model_name=name)),
    ]
    assert running.classify("bank").classifications
    opened.clear()
    for name in NAMES:
        for call in calls:
            with pytest.raises(grpc.RpcError) as failure:
                call(name)
            assert failure.value.code() in (
                grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT,
            )  # fmt: skip
        quoted = urllib.parse.quote(name, safe="")
        for path in (f"/v2/models/{quoted}", f"/v2/models/news/versions/{quoted}/ready"):
            assert fetch(running, "GET", path)[0] in (400, 404, 503), (path, name)
    touched = [path for path in opened if any(name.strip("\0") in path for name in NAMES)]
    assert not touched, touched


def test_the_watch_sees_what_is_opened(opened: list[str]) -> None:
    with pytest.raises(OSError, match="/nowhere/news"):
        open("/nowhere/news").close()
    assert "/nowhere/news" in opened
