"""A server's process where its log cannot be written, and what it has imported in the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import grpc
import pytest

from edgewright.client import Client, Feedback
from edgewright.oip.inference_pb2 import ModelInferRequest
from edgewright.oip.inference_pb2_grpc import GRPCInferenceServiceStub
from edgewright.repository import Repository

from .bundles import Recipe, make_bundle
from .processes import FREE_PORTS, Start, classify, page, until

HEAVY = (
    *("torch", "transformers", "optimum", "nncf", "onnx", "scipy", "pyarrow", "datasets"),
    *("pandas", "sklearn", "matplotlib", "jinja2", "openvino", "accelerate", "peft"),
)


@pytest.fixture(params=["full disk", "closed pipe", "pipe that nobody reads"])
def bad_stderr(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "full disk":
        with open("/dev/full", "w") as full:
            yield full
        return
    reads, writes = os.pipe()
    if request.param == "closed pipe":
        os.close(reads)
    with os.fdopen(writes, "w") as pipe:
        yield pipe
    if request.param != "closed pipe":
        os.close(reads)


def test_a_log_that_cannot_be_written_stops_no_call_and_changes_no_exit_code(
    start: Start, repository: Path, bad_stderr: Any
) -> None:
    options = ("--json", "--access-log", "all")
    process = start(str(repository), *FREE_PORTS, *options, stderr=bad_stderr)
    told = process.ready()
    # 500 lines are more than a pipe holds.
    with grpc.insecure_channel(f"127.0.0.1:{told['port']}") as channel:
        infer = GRPCInferenceServiceStub(channel).ModelInfer
        for _ in range(500):
            with pytest.raises(grpc.RpcError) as refused:
                infer(ModelInferRequest(model_name="w" * 200), timeout=60)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # and no deadline
    assert classify(told["port"]).classifications
    assert page(told["metrics_port"], "/readyz")[0] == 200
    process.popen.terminate()
    assert process.wait()[0] == 0


def test_a_server_that_has_done_all_it_does_has_imported_no_training_library(
    start: Start, tmp_path: Path
) -> None:
    assert all(find_spec(name) for name in ("torch", "transformers", "onnx", "scipy"))
    repository = Repository(tmp_path / "repository")
    repository.publish(make_bundle(tmp_path / "bundle", Recipe(features=True)), "news")
    with (tmp_path / "imports").open("w") as imports:
        process = start(
            *(str(repository.path), *FREE_PORTS, "--json", "--admin-port", "0", "--reflection"),
            *("--feedback", f"sqlite:///{tmp_path / 'feedback.db'}", "--log-inputs", "all"),
            stderr=imports,
            PYTHONPROFILEIMPORTTIME="1",  # as python -X importtime
        )
        told = process.ready()
        target = f"127.0.0.1:{told['port']}"
        with closing(Client(target)) as client:
            (answer,) = client.classify("bank shares", model="news")
            assert len(client.embed(["bank"], model="news")) == 1
            assert len(list(client.stream_classify(["goal"], model="news"))) == 1
            given = Feedback(answer.label, answer.prediction_id)
            assert all(each.durable for each in client.stream_feedback([given]))
        with grpc.insecure_channel(target) as channel:
            text = ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1])
            text.contents.bytes_contents.append(b"bank")
            request = ModelInferRequest(model_name="news", inputs=[text])
            assert GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30).outputs
        url = f"http://127.0.0.1:{told['metrics_port']}/v1/models/news:classify"
        with urlopen(Request(url, b'{"texts": ["bank"]}'), timeout=30) as response:
            assert response.status == 200
        assert page(told["metrics_port"], "/metrics")[0] == 200
        repository.publish(make_bundle(tmp_path / "second", Recipe(seed=1)), "news")
        until(lambda: 'model_info' in page(told["metrics_port"], "/metrics")[1]
              and 'version="2"' in page(told["metrics_port"], "/metrics")[1])  # fmt: skip
        process.popen.terminate()
        assert process.wait()[0] == 0
    lines = (tmp_path / "imports").read_text().splitlines()
    found = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if "|" in line}
    assert "onnxruntime" in found
    assert not found & set(HEAVY)
