"""Engines of a bundle: built on a GPU host, proven by its goldens, remembered beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import prepared_bundle
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeTensorRt

from edgewright.backends.tensorrt.backend import TensorRtBackend
from edgewright.bundle import Bundle
from edgewright.errors import ArtifactNotFoundError, BackendUnavailableError, IntegrityError
from edgewright.manifest import verify
from edgewright.proof.engines import RECORD, build_and_prove, proven_session
from edgewright.state_dir import StateDir


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_bundle.make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def bundle(path: Path) -> Bundle:
    return Bundle.open(path)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return FakeTensorRt().install(monkeypatch)


def test_every_engine_is_built_and_held_against_the_goldens(
    bundle: Bundle, state: StateDir, fake: FakeTensorRt
) -> None:
    lines: list[str] = []
    proofs, faults = build_and_prove(bundle, state, tell=lines.append)
    assert faults == []
    assert lines == [each.variant for each in proofs] == ["tensorrt-int8-static", "tensorrt-fp16"]
    for proof in proofs:
        assert proof.goldens == len(prepared_bundle.TEXTS)
        assert proof.labels_changed == 0
        assert proof.largest_difference < 1e-2
        assert (state.engines / f"{proof.key.digest}.engine").is_file()
    assert [proof.integer_products for proof in proofs] == [1, 0]
    verify(bundle.path)  # nothing was written to it


def test_a_proven_engine_is_loaded_and_none_other(
    bundle: Bundle, state: StateDir, fake: FakeTensorRt
) -> None:
    assert proven_session(bundle, state) is None
    build_and_prove(bundle, state)
    found = proven_session(bundle, state)
    assert found is not None
    assert found[0].name == "tensorrt-int8-static"
    assert found[1].max_rows == 32
    assert fake.builds == 2
    build_and_prove(bundle, state)
    assert fake.builds == 2  # they are there already


@pytest.mark.parametrize("what", ["driver", "engine", "record of another bundle"])
def test_an_engine_that_no_longer_fits_is_not_loaded(
    bundle: Bundle, state: StateDir, fake: FakeTensorRt, what: str
) -> None:
    build_and_prove(bundle, state)
    if what == "driver":
        fake.cuda.driver = 13030
    elif what == "engine":
        for file in state.engines.glob("*.engine"):
            file.write_bytes(b"damaged")
    else:
        shutil.rmtree(state.of(bundle.artifact.manifest_sha256))
    assert proven_session(bundle, state) is None
    build_and_prove(bundle, state)
    assert proven_session(bundle, state) is not None


def test_an_engine_that_answers_otherwise_is_not_proven_and_the_others_are(
    tmp_path: Path, state: StateDir, fake: FakeTensorRt
) -> None:
    spoilt = "tensorrt-int8-static"
    recorded = {spoilt: prepared_bundle.reversed_classes}
    bundle = Bundle.open(prepared_bundle.make_bundle(tmp_path / "bundle", recorded=recorded))
    proofs, (fault,) = build_and_prove(bundle, state)
    assert fault.startswith(f"{spoilt}: ")
    assert "gets other scores than recorded" in fault
    assert [each.variant for each in proofs] == ["tensorrt-fp16"]
    found = proven_session(bundle, state)
    assert found is not None
    assert found[0].name == "tensorrt-fp16"


def test_scores_may_move_as_they_do_between_hosts(
    tmp_path: Path, state: StateDir, fake: FakeTensorRt
) -> None:
    recorded = {"tensorrt-fp16": prepared_bundle.slightly_off}
    bundle = Bundle.open(prepared_bundle.make_bundle(tmp_path / "bundle", recorded=recorded))
    proofs, faults = build_and_prove(bundle, state)
    assert faults == []
    assert proofs[1].largest_difference > 1e-3
    assert proofs[1].labels_changed == 0


def test_an_engine_that_was_built_for_other_ends_is_not_proven(
    bundle: Bundle, state: StateDir, fake: FakeTensorRt
) -> None:
    build_and_prove(bundle, state)
    fake.cuda.driver = 13030
    for variant in bundle.prepared:
        TensorRtBackend(state.engines).load(
            bundle.path / variant.file, threads=1, options=variant.session_options
        )
    assert proven_session(bundle, state) is None


def test_a_node_that_tensorrt_does_not_know_is_a_fault_of_its_variant(
    bundle: Bundle, state: StateDir, fake: FakeTensorRt
) -> None:
    fake.unsupported = {"QuantizeLinear"}
    proofs, (fault,) = build_and_prove(bundle, state)
    assert [each.variant for each in proofs] == ["tensorrt-fp16"]
    assert "(QuantizeLinear /q): no importer registered" in fault


def test_an_altered_record_is_named(bundle: Bundle, state: StateDir, fake: FakeTensorRt) -> None:
    build_and_prove(bundle, state)
    file = state.of(bundle.artifact.manifest_sha256) / f"{RECORD}.json"
    file.write_bytes(file.read_bytes().replace(b"fp16", b"fp17"))
    with pytest.raises(IntegrityError, match=r"engines\.json was altered; remove it"):
        proven_session(bundle, state)


def test_without_a_gpu_nothing_is_written(
    bundle: Bundle, state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeTensorRt(cuda=FakeCuda(devices=0)).install(monkeypatch)
    with pytest.raises(BackendUnavailableError, match="no usable NVIDIA GPU here"):
        build_and_prove(bundle, state)
    assert not state.path.exists()


def test_a_bundle_with_nothing_to_build_says_how_to_make_one(
    tmp_path: Path, state: StateDir, fake: Any
) -> None:
    bundle = Bundle.open(prepared_bundle.make_bundle(tmp_path / "bundle", prepared=False))
    with pytest.raises(ArtifactNotFoundError, match="`edgewright optimize .* --backend tensorrt`"):
        build_and_prove(bundle, state)
    assert proven_session(bundle, state) is None
