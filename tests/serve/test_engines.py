"""A server takes an engine that was proven on its host, and else what is certified."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import prepared_bundle
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRt

from edgewright.bundle import Bundle, Verdict
from edgewright.proof.engines import build_and_prove
from edgewright.repository import Repository
from edgewright.serve.host_choice import HostOptions
from edgewright.serve.models import ServedModel, load_model
from edgewright.state_dir import StateDir


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    folder = tmp_path_factory.mktemp("published")
    made = Repository(folder / "repository")
    made.publish(prepared_bundle.make_bundle(folder / "bundle"), "news")
    return made


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return FakeTensorRt().install(monkeypatch)


def load(
    repository: Repository, state: StateDir, max_batch: int = 8, instances: int | None = None
) -> ServedModel:
    host = HostOptions(state_dir=state.path)
    return load_model(
        repository, "news", 1, threads=None, max_batch=max_batch, instances=instances, host=host
    )


def bundle(repository: Repository) -> Bundle:
    return repository.bundle("news", 1)


def test_a_proven_engine_answers_and_is_said_to_be_unverified(
    repository: Repository, state: StateDir, fake: FakeTensorRt
) -> None:
    certified = load(repository, state)
    assert certified.variant.name == "onnxruntime-fp32"
    assert certified.verdict is Verdict.PASS
    build_and_prove(bundle(repository), state)
    model = load(repository, state)
    assert model.variant.name == "tensorrt-int8-static"
    assert model.verdict is Verdict.UNVERIFIED
    assert model.runtime == "tensorrt 11.4.0.106 on NVIDIA Fake (compute capability 9.0)"
    rows = model.encode(prepared_bundle.TEXTS)
    np.testing.assert_allclose(model.scores(rows[:5]), certified.scores(rows[:5]), atol=0.05)


@pytest.mark.parametrize(("asked", "instances"), [(None, 2), (1, 1), (3, 3)])
def test_one_engine_computes_in_as_many_sessions_as_are_asked_for_and_else_in_two(
    repository: Repository, state: StateDir, fake: FakeTensorRt, asked: Any, instances: int
) -> None:
    build_and_prove(bundle(repository), state)
    before = fake.engines
    model = load(repository, state, instances=asked)
    assert model.instances == len(set(model.session.each)) == instances
    assert fake.engines == before + 1


def test_a_gpu_without_room_for_all_sessions_leaves_it_to_what_is_certified(
    repository: Repository, state: StateDir, fake: FakeTensorRt, caplog: pytest.LogCaptureFixture
) -> None:
    build_and_prove(bundle(repository), state)
    fake.contexts_left = 3  # an engine of two profiles has two a session
    assert load(repository, state).verdict is Verdict.PASS
    told = "there cannot be 2 --instances of it (TensorRT: create_execution_context failed"
    assert told in caplog.text
    fake.contexts_left = 3
    assert load(repository, state, instances=1).variant.name == "tensorrt-int8-static"


def test_an_unproven_engine_is_not_built_at_the_start_but_asked_for(
    repository: Repository, state: StateDir, fake: FakeTensorRt, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert load(repository, state).variant.name == "onnxruntime-fp32"
    assert fake.builds == 0
    assert "run `edgewright build-engine " in caplog.text


def test_an_engine_smaller_than_the_servers_batches_is_not_used(
    repository: Repository, state: StateDir, fake: FakeTensorRt, caplog: pytest.LogCaptureFixture
) -> None:
    build_and_prove(bundle(repository), state)
    assert load(repository, state, max_batch=64).variant.name == "onnxruntime-fp32"
    assert "its engine takes 32 rows and --max-batch is 64" in caplog.text


def test_an_altered_record_is_told_and_what_is_certified_answers(
    repository: Repository, state: StateDir, fake: FakeTensorRt, caplog: pytest.LogCaptureFixture
) -> None:
    build_and_prove(bundle(repository), state)
    (state.of(bundle(repository).artifact.manifest_sha256) / "engines.json").write_bytes(b"{}")
    assert load(repository, state).verdict is Verdict.PASS
    assert "engines.json was altered" in caplog.text


def test_a_host_that_lost_its_gpu_serves_what_is_certified(
    repository: Repository,
    state: StateDir,
    fake: FakeTensorRt,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    build_and_prove(bundle(repository), state)
    FakeTensorRt(cuda=FakeCuda(devices=0)).install(monkeypatch)
    model = load(repository, state)
    assert model.verdict is Verdict.PASS
    assert "no engine of it is used (no usable NVIDIA GPU here" in caplog.text
