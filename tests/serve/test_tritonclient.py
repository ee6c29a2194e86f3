"""Unmodified tritonclient, sync and asyncio, in an environment of its own: it wants protobuf 6."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import pytest

from edgewright.repository import Repository

from .conftest import Launch, Running
from .image_bundles import make_image_bundle, png

pytestmark = pytest.mark.slow
CLIENT = Path(__file__).with_name("triton_calls.py")


@pytest.fixture(scope="session")
def triton_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    done = subprocess.run(
        [*pip, "--python", str(python), "install", "tritonclient[grpc,http]>=2.50"],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip(f"pip cannot install tritonclient here: {done.stderr[-300:]}")
    return python


@pytest.fixture
def running(launch: Launch, bundle: Path, tmp_path: Path) -> Running:
    Repository(tmp_path / "two").publish(bundle, "news")
    Repository(tmp_path / "two").publish(make_image_bundle(tmp_path / "colours"), "colours")
    return launch(tmp_path / "two")


@pytest.mark.parametrize("kind", ["sync", "aio", "http"])
def test_tritonclient_works_unmodified(running: Running, triton_python: Path, kind: str) -> None:
    port = running.server.metrics_port if kind == "http" else running.server.port
    picture = png((0, 250, 9)).hex()
    done = subprocess.run(
        [triton_python, "-I", CLIENT, kind, f"127.0.0.1:{port}", picture],
        capture_output=True,
        text=True,
        cwd=tempfile.gettempdir(),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    texts = ["bank shares", "team wins"]
    typed = running.classify(*texts, model="news").classifications
    assert told["labels"] == [each.label for each in typed]
    assert told["score"] == pytest.approx([each.score for each in typed], abs=1e-6)
    assert told["scores_shape"] == [2, 3]
    assert told["best"].endswith(f":{typed[0].label}")
    assert told["picture"] == "green"
    assert told["pixels"] == "blue"
    assert told["live"] is told["ready"] is told["model_ready"] is True
    assert told["other_ready"] is False
    assert told["inputs"][0] == "text"
    assert told["config"] == {
        "name": "news", "platform": "edgewright", "backend": "onnxruntime", "max_batch_size": 256,
    }  # fmt: skip
    assert told["tensors"] == {
        "text": ["TYPE_STRING", [1]],
        "input_ids": ["TYPE_INT64", [-1]],
        "attention_mask": ["TYPE_INT64", [-1]],
        "label": ["TYPE_STRING", []],
        "score": ["TYPE_FP32", []],
        "scores": ["TYPE_FP32", [3]],
        "prediction_id": ["TYPE_STRING", []],
        "logits": ["TYPE_FP32", [3]],
    }
    invalid, missing = ("400", "404") if kind == "http" else (
        "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND",
    )  # fmt: skip
    assert told["errors"]["bad"][0] == invalid
    assert "is no output of news" in told["errors"]["bad"][1]
    assert told["errors"]["unknown"][0] == missing
