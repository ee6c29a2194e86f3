"""Candidates: every file on every runtime that can run it, and how each must be run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edgewright.backends import get_backend
from edgewright.checkpoint import Checkpoint
from edgewright.errors import BackendUnavailableError, EdgewrightError, IntegrityError
from edgewright.manifest import sha256_file
from edgewright.model_file import LOGITS
from edgewright.optimize import workshop
from edgewright.optimize.export import Export, Reference, export_onnx
from edgewright.optimize.origin import Origin
from edgewright.optimize.quantize import Calibration
from edgewright.optimize.recipes import Materials, fp16, fp32
from edgewright.optimize.variants import Candidate
from edgewright.optimize.workshop import Probe, build_candidates, is_batch_invariant
from edgewright.proof.logits import predict_logits

BOTH = ("onnxruntime", "openvino")


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
def order(export: Export, calibration: Calibration) -> Callable[..., Materials]:
    """Materials for a folder: both CPU runtimes, 7-bit weights and bf16 unless told otherwise."""

    def make(folder: Path, **changes: Any) -> Materials:
        plain = Materials(
            export=export,
            folder=folder,
            calibration=calibration,
            backends=BOTH,
            reduce_range=True,
            bf16=True,
        )
        return replace(plain, **changes)

    return make


def worked(export: Export, folder: Path) -> Path:
    """Another file of the same model, as graph work would write one."""
    model = onnx.load(export.path)
    model.doc_string = "worked"
    onnx.save(model, folder / "fp32-graph.onnx")
    return folder / "fp32-graph.onnx"


@pytest.fixture(scope="module")
def candidates(
    order: Callable[..., Materials],
    export: Export,
    probe: Probe,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Candidate]:
    folder = tmp_path_factory.mktemp("variants")
    built, skipped = build_candidates(order(folder, worked=worked(export, folder)), probe)
    # OpenVINO has no kernel for dynamic int8 and multiplies what it has dequantised.
    assert [each.name for each in skipped] == [
        "openvino-int8-dynamic", "openvino-int8-dynamic-embeddings",
    ]  # fmt: skip
    assert all("openvino computes it in float: none of" in each.reason for each in skipped)
    return {candidate.name: candidate for candidate in built}


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def test_every_kind_is_there_on_every_runtime_that_it_is_for_and_the_baseline_first(
    candidates: dict[str, Candidate],
) -> None:
    common = ["fp32", "fp32-graph", "int8-dynamic", "int8-dynamic-embeddings", "int8-static"]
    assert list(candidates) == [
        *[f"onnxruntime-{kind}" for kind in common],
        *[f"openvino-{kind}" for kind in [*common[:2], "bf16", common[-1]]],
    ]
    assert all(candidate.file.is_file() for candidate in candidates.values())


def test_files_are_shared_unless_the_runtimes_want_different_forms(
    candidates: dict[str, Candidate], export: Export
) -> None:
    files = {name: candidate.file.name for name, candidate in candidates.items()}
    assert candidates["onnxruntime-fp32"].file == export.path
    assert files["onnxruntime-fp32"] == files["openvino-fp32"]
    assert files["onnxruntime-fp32-graph"] == files["openvino-fp32-graph"] == "fp32-graph.onnx"
    assert files["onnxruntime-int8-static"] == "int8-static.onnxruntime.onnx"
    assert files["openvino-int8-static"] == "int8-static.openvino.onnx"
    assert "MatMulIntegerToFloat" in operators(candidates["onnxruntime-int8-static"].file)
    assert "MatMulIntegerToFloat" not in operators(candidates["openvino-int8-static"].file)


def test_dynamic_depends_on_the_batch_and_nothing_else_does(
    candidates: dict[str, Candidate],
) -> None:
    dependent = {name for name, candidate in candidates.items() if not candidate.batch_invariant}
    dynamic = {f"onnxruntime-int8-dynamic{end}" for end in ("", "-embeddings")}
    assert dynamic <= dependent
    assert all("int8-dynamic" in name for name in dependent)


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
        exact = candidate.precision in ("fp32", "fp32-graph")
        assert same == 1 if exact else same > 0.95, candidate.name
        assert np.abs(logits - expected).mean() < 0.1 * expected.std(), candidate.name


def test_fp32_computes_in_fp32_and_bf16_is_a_row_of_its_own(
    candidates: dict[str, Candidate],
) -> None:
    hints = {
        name: candidate.session_options["INFERENCE_PRECISION_HINT"]
        for name, candidate in candidates.items()
        if candidate.backend == "openvino"
    }
    assert hints.pop("openvino-fp32") == hints.pop("openvino-fp32-graph") == "f32"
    assert set(hints.values()) == {"bf16"}


def test_without_bf16_instructions_it_is_left_out_and_int8_keeps_to_fp32(
    order: Callable[..., Materials], probe: Probe, tmp_path: Path
) -> None:
    materials = order(tmp_path, backends=["openvino"], bf16=False)
    built, skipped = build_candidates(materials, probe)
    assert "openvino-bf16" not in [each.name for each in built]
    reasons = {each.name: each.reason for each in skipped}
    assert "no bf16 instructions" in reasons["openvino-bf16"]
    hints = {each.session_options["INFERENCE_PRECISION_HINT"] for each in built}
    assert hints == {"f32"}


def test_the_baseline_runs_as_anyone_would_run_it(candidates: dict[str, Candidate]) -> None:
    """A baseline held back would flatter the rest."""
    assert not candidates["onnxruntime-fp32"].session_options
    assert not candidates["onnxruntime-fp32-graph"].session_options


def test_int8_files_are_smaller_and_smallest_with_int8_embeddings(
    candidates: dict[str, Candidate],
) -> None:
    size = {name: candidate.file.stat().st_size for name, candidate in candidates.items()}
    assert size["onnxruntime-int8-dynamic"] < 0.6 * size["onnxruntime-fp32"]
    assert size["onnxruntime-int8-dynamic-embeddings"] < size["onnxruntime-int8-dynamic"]
    for backend in BOTH:
        assert size[f"{backend}-int8-static"] < 0.6 * size[f"{backend}-fp32"]


def test_all_other_files_are_made_from_the_worked_graph(
    order: Callable[..., Materials], export: Export, probe: Probe, tmp_path: Path
) -> None:
    """Seen by work that is not exact: it favours the first class."""
    model = onnx.load(export.path)
    bias = next(each for each in model.graph.initializer if list(each.dims) == [3])
    bias.CopyFrom(numpy_helper.from_array(np.float32([9, 0, 0]), bias.name))
    onnx.save(model, tmp_path / "fp32-graph.onnx")
    built, _ = build_candidates(order(tmp_path, worked=tmp_path / "fp32-graph.onnx"), probe)
    assert len(built) == 9
    for each in built:
        session = get_backend(each.backend).load(each.file, threads=1, options=each.session_options)
        logits = predict_logits(session, probe.preprocessor, probe.rows[:30])
        favoured = bool((logits.argmax(axis=1) == 0).all())
        assert favoured is (each.precision != "fp32"), each.name


def test_without_graph_work_there_is_no_row_for_it_and_the_reason_is_told(
    order: Callable[..., Materials], probe: Probe, tmp_path: Path
) -> None:
    built, skipped = build_candidates(order(tmp_path, backends=["onnxruntime"]), probe)
    assert "onnxruntime-fp32-graph" not in [each.name for each in built]
    assert [each.name for each in skipped] == ["onnxruntime-fp32-graph"]
    assert "fp32 once more" in skipped[0].reason


@pytest.mark.parametrize(("reduce_range", "ending"), [(True, "-7bit"), (False, "")])
def test_weights_have_seven_bits_where_products_saturate(
    order: Callable[..., Materials], probe: Probe, tmp_path: Path, reduce_range: bool, ending: str
) -> None:
    materials = order(tmp_path, backends=["onnxruntime"], reduce_range=reduce_range)
    built, _ = build_candidates(materials, probe)
    assert [candidate.precision for candidate in built] == [
        "fp32",
        f"int8-dynamic{ending}",
        f"int8-dynamic-embeddings{ending}",
        f"int8-static{ending}",
    ]
    assert not (tmp_path / "int8-static.openvino.onnx").exists()
    assert not (tmp_path / "fp16.onnx").exists()


def test_the_same_checkpoint_gives_the_same_files(
    candidates: dict[str, Candidate],
    order: Callable[..., Materials],
    export: Export,
    probe: Probe,
    tmp_path: Path,
) -> None:
    again, _ = build_candidates(order(tmp_path, worked=worked(export, tmp_path)), probe)
    assert len(again) == len(candidates)
    for candidate in again:
        assert sha256_file(candidate.file) == sha256_file(candidates[candidate.name].file)


class Unable:
    """A runtime that loads nothing."""

    def __init__(self, error: Callable[[str], EdgewrightError]) -> None:
        self.error = error

    def load(self, path: Path, *, threads: int, options: object) -> None:
        raise self.error(path.name)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a backend fail to load with an error."""

    def put(backend: str, error: Callable[[str], EdgewrightError]) -> None:
        real = workshop.get_backend
        monkeypatch.setattr(
            workshop, "get_backend", lambda name: Unable(error) if name == backend else real(name)
        )

    return put


def test_what_a_runtime_cannot_load_is_left_out_with_the_reason(
    order: Callable[..., Materials], probe: Probe, tmp_path: Path, without: Callable[..., None]
) -> None:
    reason = "cannot load {}: at core.cpp:117:\n  no MatMulInteger" + " !" * 999
    without("openvino", lambda name: IntegrityError(reason.format(name)))
    built, skipped = build_candidates(order(tmp_path), probe)
    assert {candidate.backend for candidate in built} == {"onnxruntime"}
    reasons = {each.name: each.reason for each in skipped}
    assert {f"openvino-{kind}" for kind in ("fp32", "bf16", "int8-static")} <= set(reasons)
    assert "core.cpp:117: no MatMulInteger" in reasons["openvino-int8-dynamic"]
    assert len(reasons["openvino-int8-dynamic"]) <= 300


class Faulty:
    """OpenVINO, but for what its sessions do when they run."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def load(self, path: Path, **options: Any) -> Any:
        session = get_backend("openvino").load(path, **options)
        return SimpleNamespace(
            inputs=session.inputs, outputs=session.outputs, placement=session.placement,
            run=lambda arrays: self.run(session.run(arrays)),
        )  # fmt: skip


def _fail(_answer: Any) -> Any:
    raise RuntimeError("a kernel failed")


def _no_numbers(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: np.full_like(value, np.nan) for name, value in answer.items()}


@pytest.mark.parametrize(
    ("run", "reason"),
    [(_fail, "cannot run: a kernel failed"), (_no_numbers, "answers 16 of 16 rows")],
)
def test_what_cannot_answer_is_left_out_with_the_reason(
    order: Callable[..., Materials],
    probe: Probe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Any],
    reason: str,
) -> None:
    monkeypatch.setattr(workshop, "RECIPES", (fp32.RECIPE,))
    real = workshop.get_backend
    monkeypatch.setattr(
        workshop, "get_backend", lambda name: Faulty(run) if name == "openvino" else real(name)
    )
    built, skipped = build_candidates(order(tmp_path), probe)
    assert [each.name for each in built] == ["onnxruntime-fp32"]
    (left_out,) = skipped
    assert left_out.name == "openvino-fp32"
    assert reason in left_out.reason


def test_a_missing_device_is_a_skipped_row_unless_it_was_asked_for(
    order: Callable[..., Materials],
    probe: Probe,
    tmp_path: Path,
    without: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workshop, "RECIPES", (fp32.RECIPE, fp16.RECIPE))
    without("onnxruntime-cuda", lambda _: BackendUnavailableError("no CUDA device is here"))
    materials = order(tmp_path, backends=["onnxruntime", "onnxruntime-cuda"])
    built, skipped = build_candidates(materials, probe)
    assert [each.name for each in built] == ["onnxruntime-fp32"]
    assert [(each.name, each.reason) for each in skipped] == [
        ("onnxruntime-cuda-fp32", "no CUDA device is here"),
        ("onnxruntime-cuda-fp16", "no CUDA device is here"),
    ]
    with pytest.raises(BackendUnavailableError, match="no CUDA device"):
        build_candidates(materials, probe, asked=["onnxruntime-cuda"])


def test_gpu_runtimes_get_fp16_and_tensorrt_symmetric_int8_of_full_range(
    order: Callable[..., Materials],
    checkpoint: Checkpoint,
    probe: Probe,
    tmp_path: Path,
    without: Callable[..., None],
) -> None:
    without("tensorrt", lambda _: BackendUnavailableError("no GPU is here"))
    _, skipped = build_candidates(order(tmp_path, backends=["onnxruntime", "tensorrt"]), probe)
    names = [each.name for each in skipped]
    assert "tensorrt-fp16" in names
    assert "tensorrt-int8-static" in names
    rows = probe.rows[:8]
    expected = Reference(Origin.of_checkpoint(checkpoint)).logits(rows)
    for file in ("fp16.onnx", "int8-static.tensorrt.onnx"):
        session = get_backend("onnxruntime").load(tmp_path / file, threads=1)
        assert {spec.dtype for spec in session.inputs} == {"int64"}
        logits = predict_logits(session, probe.preprocessor, rows, one_row_at_a_time=True)
        assert logits.dtype == np.float32
        assert np.abs(logits - expected).mean() < 0.1 * expected.std(), file
    weights = list(onnx.load(tmp_path / "fp16.onnx").graph.initializer)
    assert TensorProto.FLOAT not in {each.data_type for each in weights if len(each.dims) == 2}


def test_what_a_quantiser_cannot_make_is_left_out_with_the_reason(
    order: Callable[..., Materials], probe: Probe, tmp_path: Path
) -> None:
    def broken() -> Iterator[dict[str, np.ndarray]]:
        yield {"input_ids": np.zeros((1, 4), np.int64)}  # the other inputs are missing

    built, skipped = build_candidates(order(tmp_path, calibration=broken), probe)
    assert "int8-static-7bit" not in [candidate.precision for candidate in built]
    reasons = {each.name: each.reason for each in skipped}
    assert {"onnxruntime-int8-static", "openvino-int8-static"} <= set(reasons)
    reason = reasons["onnxruntime-int8-static"]
    assert reason.startswith("NNCF cannot quantise fp32.onnx: ")
    assert "attention_mask" in reason


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
