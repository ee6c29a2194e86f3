"""A GPU that a fault has made unusable to the process: not ready, alive no more, drained, ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import prepared_bundle
import pytest
from fake_cuda import cudaError_t
from fake_tensorrt import FakeTensorRt

from edgewright.errors import GpuLostError
from edgewright.proof.engines import build_and_prove
from edgewright.repository import Repository
from edgewright.serve import server as server_module
from edgewright.serve.config import ServeConfig
from edgewright.serve.server import Ready, serve
from edgewright.state_dir import StateDir
from edgewright.v1.prediction_pb2 import ClassifyTextRequest
from edgewright.v1.prediction_pb2_grpc import PredictionServiceStub

from .conftest import QUIET, Launch, LoopThread, Running, until

Code = grpc.StatusCode
TEXT = prepared_bundle.TEXTS[0]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return FakeTensorRt().install(monkeypatch)


@pytest.fixture
def on_gpu(tmp_path: Path, fake: FakeTensorRt) -> dict[str, Any]:
    """Options of a server that answers from an engine."""
    repository = Repository(tmp_path / "repository")
    repository.publish(prepared_bundle.make_bundle(tmp_path / "bundle"), "news")
    state = StateDir(tmp_path / "state")
    build_and_prove(repository.bundle("news", 1), state)
    return {"path": repository.path, "state_dir": state.path}


def failure(running: Running) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as failed:
        running.classify(TEXT)
    return failed.value


def test_its_callers_are_sent_elsewhere_and_it_is_neither_ready_nor_alive(
    launch: Launch, on_gpu: dict[str, Any], fake: FakeTensorRt
) -> None:
    running = launch(**on_gpu)
    assert running.classify(TEXT).classifications
    assert running.server.is_ready()
    fake.cuda.fault = cudaError_t.cudaErrorIllegalAddress
    for _ in range(2):  # before the drain a second call may come
        failed = failure(running)
        assert failed.code() is Code.UNAVAILABLE
        assert "cudaErrorIllegalAddress" in failed.details()
    assert not running.server.is_ready()
    assert not running.server.is_alive()


def test_a_fault_that_the_gpu_survives_is_the_calls_alone(
    launch: Launch, on_gpu: dict[str, Any], fake: FakeTensorRt
) -> None:
    running = launch(**on_gpu)
    fake.cuda.refuse = {"cudaMemcpyAsync"}
    assert failure(running).code() is Code.FAILED_PRECONDITION
    fake.cuda.refuse = set()
    assert running.classify(TEXT).classifications
    assert running.server.is_ready()


def test_the_process_drains_and_ends_with_the_fault(
    loop: LoopThread,
    on_gpu: dict[str, Any],
    fake: FakeTensorRt,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun: list[bool] = []
    monkeypatch.setattr(
        server_module, "Grace", lambda *_: SimpleNamespace(begin=lambda: begun.append(True))
    )
    config = ServeConfig(on_gpu.pop("path"), **QUIET, **on_gpu, drain_delay_s=0.0)
    ready: list[Ready] = []
    serving = asyncio.run_coroutine_threadsafe(
        serve(config, ready.append, SimpleNamespace(), lambda _: asyncio.Event()),  # type: ignore[arg-type]
        loop.loop,
    )
    until(lambda: bool(ready))
    for channel in connected(ready[0].port):
        stub = PredictionServiceStub(channel)  # type: ignore[no-untyped-call]
        stub.ClassifyText(ClassifyTextRequest(texts=[TEXT]), timeout=30)
        assert not serving.done()
        fake.cuda.fault = cudaError_t.cudaErrorIllegalAddress
        with pytest.raises(grpc.RpcError):
            stub.ClassifyText(ClassifyTextRequest(texts=[TEXT]), timeout=30)
    with pytest.raises(GpuLostError, match="cudaErrorIllegalAddress.*start it again"):
        serving.result(60)
    assert begun == [True]
    assert "CUDA: cudaStreamSynchronize failed with cudaErrorIllegalAddress" in caplog.text


def connected(port: int) -> Iterator[grpc.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield channel
