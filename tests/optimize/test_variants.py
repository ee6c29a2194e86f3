"""Candidates: every file on every runtime that can run it, and how each must be run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgewright.backends import get_backend
from edgewright.checkpoint import Checkpoint
from edgewright.errors import IntegrityError
from edgewright.manifest import sha256_file
from edgewright.optimize import variants as variants_module
from edgewright.optimize.export import Export, Reference, export_onnx
from edgewright.optimize.onnx_contract import LOGITS
from edgewright.optimize.origin import Origin
from edgewright.optimize.quantize import Calibration
from edgewright.optimize.variants import Candidate, Probe, build_candidates, is_batch_invariant
from edgewright.proof.logits import predict_logits

BOTH = ("onnxruntime", "openvino")
PLAIN, VNNI = "x86_64-avx2", "x86_64-avx512-vnni"


@pytest.fixture(scope="module")
def probe(checkpoint: Checkpoint) -> Probe:
    preprocessor = checkpoint.preprocessor()
    texts = list(checkpoint.examples().split("search").texts)
    return Probe(preprocessor, preprocessor.encode(texts))


@pytest.fixture(scope="module")
def calibration(checkpoint: Checkpoint) -> Calibration:
    preprocessor = checkpoint.preprocessor()
    rows = preprocessor.encode(list(checkpoint.examples().split("calibrate").texts))
    return lambda: (preprocessor.pad([row]).arrays for row in rows)


@pytest.fixture(scope="module")
def export(
    checkpoint: Checkpoint, probe: Probe, tmp_path_factory: pytest.TempPathFactory
) -> Export:
    return export_onnx(
        Origin.of_checkpoint(checkpoint), tmp_path_factory.mktemp("export"), probe.rows
    )


@pytest.fixture(scope="module")
def candidates(
    export: Export,
    calibration: Calibration,
    probe: Probe,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Candidate]:
    built, skipped = build_candidates(
        export,
        tmp_path_factory.mktemp("variants"),
        calibration,
        backends=BOTH,
        instruction_set=PLAIN,
        probe=probe,
    )
    assert skipped == []
    return {candidate.name: candidate for candidate in built}


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_every_precision_is_there_on_every_runtime_and_the_baseline_first(
    candidates: dict[str, Candidate],
) -> None:
    assert list(candidates) == [
        f"{backend}-{kind}" for backend in BOTH for kind in ("fp32", "int8-dynamic", "int8-static")
    ]
    assert all(candidate.file.is_file() for candidate in candidates.values())


def test_files_are_shared_unless_the_runtimes_want_different_forms(
    candidates: dict[str, Candidate], export: Export
) -> None:
    files = {name: candidate.file.name for name, candidate in candidates.items()}
    assert candidates["onnxruntime-fp32"].file == export.path
    assert files["onnxruntime-fp32"] == files["openvino-fp32"]
    assert files["onnxruntime-int8-dynamic"] == files["openvino-int8-dynamic"]
    assert files["onnxruntime-int8-static"] == "int8-static.onnxruntime.onnx"
    assert files["openvino-int8-static"] == "int8-static.openvino.onnx"
    assert "MatMulIntegerToFloat" in operators(candidates["onnxruntime-int8-static"].file)
    assert "MatMulIntegerToFloat" not in operators(candidates["openvino-int8-static"].file)


def test_dynamic_depends_on_the_batch_and_static_does_not(
    candidates: dict[str, Candidate],
) -> None:
    invariant = {name for name, candidate in candidates.items() if candidate.batch_invariant}
    assert invariant == {
        f"{backend}-{kind}" for backend in BOTH for kind in ("fp32", "int8-static")
    }


def test_candidates_answer_as_the_checkpoint_does(
    candidates: dict[str, Candidate], checkpoint: Checkpoint, probe: Probe
) -> None:
    expected = Reference(Origin.of_checkpoint(checkpoint)).logits(probe.rows)
    for candidate in candidates.values():
        session = get_backend(candidate.backend).load(
            candidate.file, threads=1, options=candidate.session_options
        )
        logits = predict_logits(
            session,
            probe.preprocessor,
            probe.rows,
            one_row_at_a_time=not candidate.batch_invariant,
        )
        same = np.mean(logits.argmax(axis=1) == expected.argmax(axis=1))
        assert same == 1 if candidate.precision == "fp32" else same > 0.95, candidate.name
        assert np.abs(logits - expected).mean() < 0.1 * expected.std(), candidate.name


def test_the_baseline_runs_as_anyone_would_run_it(candidates: dict[str, Candidate]) -> None:
    """Only int8 on ONNX Runtime is told anything; a baseline held back would flatter the rest."""
    told = {name for name, candidate in candidates.items() if candidate.session_options}
    assert told == {"onnxruntime-int8-dynamic", "onnxruntime-int8-static"}


def test_int8_files_are_smaller(candidates: dict[str, Candidate]) -> None:
    size = {name: candidate.file.stat().st_size for name, candidate in candidates.items()}
    for backend in BOTH:
        for kind in ("int8-dynamic", "int8-static"):
            assert size[f"{backend}-{kind}"] < 0.6 * size[f"{backend}-fp32"]


@pytest.mark.parametrize(
    ("instruction_set", "ending"), [(PLAIN, "-7bit"), (VNNI, ""), ("x86_64-amx", "")]
)
def test_weights_have_seven_bits_where_products_saturate(
    export: Export,
    calibration: Calibration,
    probe: Probe,
    tmp_path: Path,
    instruction_set: str,
    ending: str,
) -> None:
    built, _ = build_candidates(
        export,
        tmp_path,
        calibration,
        backends=["onnxruntime"],
        instruction_set=instruction_set,
        probe=probe,
    )
    assert [candidate.precision for candidate in built] == [
        "fp32",
        f"int8-dynamic{ending}",
        f"int8-static{ending}",
    ]
    assert not (tmp_path / "int8-static.openvino.onnx").exists()


def test_the_same_checkpoint_gives_the_same_files(
    candidates: dict[str, Candidate],
    export: Export,
    calibration: Calibration,
    probe: Probe,
    tmp_path: Path,
) -> None:
    again, _ = build_candidates(
        export, tmp_path, calibration, backends=BOTH, instruction_set=PLAIN, probe=probe
    )
    for candidate in again:
        assert sha256_file(candidate.file) == sha256_file(candidates[candidate.name].file)


def test_what_a_runtime_cannot_load_is_left_out_with_the_reason(
    export: Export,
    calibration: Calibration,
    probe: Probe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Unable:
        def load(self, path: Path, *, threads: int, options: object) -> None:
            raise IntegrityError(
                f"cannot load {path.name}: at core.cpp:117:\n  no MatMulInteger" + " !" * 999
            )

    real = get_backend("onnxruntime")
    monkeypatch.setattr(
        variants_module, "get_backend", lambda name: Unable() if name == "openvino" else real
    )
    built, skipped = build_candidates(
        export, tmp_path, calibration, backends=BOTH, instruction_set=PLAIN, probe=probe
    )
    assert {candidate.backend for candidate in built} == {"onnxruntime"}
    assert [each.name for each in skipped] == [
        "openvino-fp32",
        "openvino-int8-dynamic",
        "openvino-int8-static",
    ]
    assert "core.cpp:117: no MatMulInteger" in skipped[1].reason
    assert len(skipped[1].reason) <= 300


def test_what_a_quantiser_cannot_make_is_left_out_with_the_reason(
    export: Export, probe: Probe, tmp_path: Path
) -> None:
    def broken() -> Iterator[dict[str, np.ndarray]]:
        yield {"input_ids": np.zeros((1, 4), np.int64)}  # the other inputs are missing

    built, skipped = build_candidates(
        export, tmp_path, broken, backends=BOTH, instruction_set=PLAIN, probe=probe
    )
    assert [candidate.precision for candidate in built] == ["fp32", "int8-dynamic-7bit"] * 2
    assert [each.name for each in skipped] == ["onnxruntime-int8-static", "openvino-int8-static"]
    assert skipped[0].reason.startswith("NNCF cannot quantise fp32.onnx: ")
    assert "attention_mask" in skipped[0].reason


class Scripted:
    """A session whose logits in a batch differ from those of a row alone as it is told."""

    inputs = outputs = ()

    def __init__(self, change) -> None:
        self.change = change

    def run(self, arrays):
        ids = (arrays["input_ids"] * arrays["attention_mask"]).sum(axis=1)
        logits = np.stack([np.sin(ids), np.cos(ids)], axis=1) * 3
        return {LOGITS: (self.change(logits) if len(ids) > 1 else logits).astype(np.float32)}


class TestBatchInvariance:
    def test_noise_of_rounding_is_no_dependence(self, probe: Probe) -> None:
        assert is_batch_invariant(Scripted(lambda logits: logits + 1e-5), probe)

    def test_a_changed_label_is_one(self, probe: Probe) -> None:
        def swap_one(logits):
            logits[3] = logits[3, ::-1]
            return logits

        assert not is_batch_invariant(Scripted(swap_one), probe)

    def test_a_shift_of_every_row_is_one(self, probe: Probe) -> None:
        assert not is_batch_invariant(Scripted(lambda logits: logits * 1.2), probe)

    def test_a_small_influence_of_the_neighbours_is_one(self, probe: Probe) -> None:
        def leak(logits):
            return logits + 1e-3 * logits.max(axis=0)

        assert not is_batch_invariant(Scripted(leak), probe)

    def test_a_single_row_on_a_rounding_boundary_is_none(self, probe: Probe) -> None:
        def scale_one(logits):
            logits[3] *= 1.2
            return logits

        assert is_batch_invariant(Scripted(scale_one), probe)

    def test_few_rows_will_do(self, probe: Probe) -> None:
        few = Probe(probe.preprocessor, probe.rows[:2])
        assert is_batch_invariant(Scripted(lambda logits: logits), few)
