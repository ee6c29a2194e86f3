"""build-engine as a shell sees it."""

from __future__ import annotations

import json
from pathlib import Path

import prepared_bundle
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRt

from edgewright.cli import run


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(prepared_bundle.make_bundle(tmp_path / "bundle"))


def test_it_says_what_it_built_and_where(
    bundle: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    FakeTensorRt().install(monkeypatch)
    state = tmp_path / "state"
    assert run(["build-engine", bundle, "--state-dir", str(state)]) == 0
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith("tensorrt-int8-static: 9 goldens agree (scores within ")
    assert "; 1 products in int8, 0 in float; " in first
    assert second.startswith("tensorrt-fp16: 9 goldens agree")
    for line in (first, second):
        assert Path(line.rpartition("; ")[2]).is_file()
    assert "tensorrt-fp16: build and prove" in err
    monkeypatch.setenv("EDGEWRIGHT_STATE_DIR", str(state))
    assert run(["build-engine", bundle, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["state_dir"] == str(state)
    assert [each["variant"] for each in told["engines"]] == [
        "tensorrt-int8-static", "tensorrt-fp16",
    ]  # fmt: skip
    assert told["faults"] == []


def test_without_a_gpu_it_is_exit_5_and_says_what_is_missing(
    bundle: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeTensorRt(cuda=FakeCuda(devices=0)).install(monkeypatch)
    assert run(["build-engine", bundle]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no usable NVIDIA GPU here (CUDA: cudaGetDeviceCount failed with")


def test_an_engine_that_answers_otherwise_is_exit_4_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeTensorRt().install(monkeypatch)
    recorded = {"tensorrt-fp16": prepared_bundle.reversed_classes}
    path = prepared_bundle.make_bundle(tmp_path / "bundle", recorded=recorded)
    assert run(["build-engine", str(path), "--state-dir", str(tmp_path / "state"), "--json"]) == 4
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert [each["variant"] for each in told["engines"]] == ["tensorrt-int8-static"]
    assert told["faults"][0].startswith("tensorrt-fp16: ")
    assert "error: tensorrt-fp16: " in err


def test_a_bundle_without_any_is_exit_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = prepared_bundle.make_bundle(tmp_path / "bundle", prepared=False)
    assert run(["build-engine", str(path)]) == 4
    assert "holds nothing for TensorRT; make such a bundle with" in capsys.readouterr().err
