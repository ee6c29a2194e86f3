"""What a host without a GPU makes for one that has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import prepared_bundle
import pytest
from fake_tensorrt import FakeTensorRt
from onnx import helper
from optimize_outcomes import certified, outcome, standing
from tiny_onnx import fp32_classifier, int8_classifier

from edgewright.backends import get_backend
from edgewright.backends.placement import Role
from edgewright.backends.tensorrt.profiles import Range, parse_profiles
from edgewright.bundle import Bundle
from edgewright.cli import run
from edgewright.errors import ConfigError
from edgewright.latency import Workload
from edgewright.optimize import prepared
from edgewright.optimize.artifacts import Contents, write_bundle
from edgewright.optimize.prepared import profiles_for, refuse_unfit
from edgewright.preprocess import ImagePreprocessor, ImageSettings
from edgewright.proof.engines import build_and_prove
from edgewright.proof.goldens import Goldens, make_goldens
from edgewright.state_dir import StateDir


def test_there_is_a_profile_for_each_number_of_rows_tuned_for_its_most_frequent_length() -> None:
    first, second = profiles_for(
        prepared_bundle.preprocessor(), Workload.parse("8x8:0.2,1x4:0.6,1x9:0.1,8x99:0.1")
    )
    assert first.ranges["input_ids"] == Range((1, 1), (1, 4), (1, 16))
    assert second.ranges["attention_mask"] == Range((1, 1), (8, 8), (32, 16))
    assert set(first.ranges) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(("max_rows", "most"), [(2, 8), (64, 64)])
def test_the_last_profile_takes_what_a_server_batches_and_what_goldens_need(
    max_rows: int, most: int
) -> None:
    (only,) = profiles_for(prepared_bundle.preprocessor(), Workload.parse("1x4"), max_rows=max_rows)
    assert only.ranges["input_ids"] == Range((1, 1), (1, 4), (most, 16))
    (longer,) = profiles_for(prepared_bundle.preprocessor(), Workload.parse("1x400"))
    assert longer.ranges["input_ids"].best == (1, 16)


def test_images_have_one_size_and_any_number() -> None:
    settings = ImageSettings(resize=(8, 10), crop=())
    (only,) = profiles_for(ImagePreprocessor(settings), Workload.parse("4x8"))
    assert only.ranges == {"pixel_values": Range((1, 3, 8, 10), (4, 3, 8, 10), (32, 3, 8, 10))}


def test_a_bundle_keeps_what_is_prepared_apart_and_says_that_it_is_unproven(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.open(prepared_bundle.make_bundle(tmp_path / "bundle"))
    assert [each.name for each in bundle.variants] == ["onnxruntime-fp32"]
    assert [each.name for each in bundle.prepared] == ["tensorrt-int8-static", "tensorrt-fp16"]
    for variant in bundle.prepared:
        assert variant.certificate is None
        assert 0 <= variant.search_accuracy <= 1
        assert (bundle.path / variant.file).is_file()
        first, second = parse_profiles(variant.session_options["profiles"])
        assert first.holds({"input_ids": (1, 16), "attention_mask": (1, 16)})
        assert second.holds({"input_ids": (32, 1), "attention_mask": (32, 1)})
    assert run(["inspect", str(bundle.path)]) == 0
    told = capsys.readouterr().out
    assert told.count("unproven until `edgewright build-engine` has built it on a GPU host") == 2


def test_the_scores_to_come_are_those_that_the_quantisation_defines(tmp_path: Path) -> None:
    """Not those of a fused kernel, which may saturate: computed here by hand."""
    bundle = Bundle.open(prepared_bundle.make_bundle(tmp_path / "bundle"))
    goldens = Goldens.load(bundle.path)
    constants = {
        each.name: onnx.numpy_helper.to_array(each)
        for each in onnx.load(bundle.path / bundle.prepared[0].file).graph.initializer
    }
    mask = goldens.inputs["attention_mask"][..., None]
    pooled = (constants["table"][goldens.inputs["input_ids"]] * mask).sum(axis=1) / mask.sum(axis=1)
    rounded = np.clip(np.round(pooled / constants["step"]), -128, 127) * constants["step"]
    logits = rounded @ (constants["weights"] * constants["scale"])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(goldens.scores["tensorrt-int8-static"], expected, atol=1e-5)


def test_the_scores_to_come_are_computed_without_fusing_the_quantisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []

    class Noting:
        def load(self, path: Path, *, threads: int, options: Any) -> Any:
            session = get_backend("onnxruntime").load(path, threads=threads, options=options)
            loaded.append(session.placement())
            return session

    goldens = Goldens.load(prepared_bundle.make_bundle(tmp_path / "bundle"))
    monkeypatch.setattr(prepared, "get_backend", lambda _name: Noting())
    prepared_bundle.make_prepared(tmp_path, goldens)
    assert [each.integer_products for each in loaded] == [0, 0]
    assert loaded[0].left(Role.DEQUANTIZE) == 1  # of activations; weights are folded


def test_what_does_not_fit_is_not_prepared(tmp_path: Path) -> None:
    goldens = Goldens.load(prepared_bundle.make_bundle(tmp_path / "bundle"))
    unsigned = int8_classifier(tmp_path / "unsigned.onnx", activations=np.uint8)
    with pytest.raises(ConfigError, match="TensorRT wants S8 symmetric"):
        prepared_bundle.preparation(goldens).prepare(unsigned, "int8-static", "int8-static")


def test_signed_symmetric_files_fit(tmp_path: Path) -> None:
    refuse_unfit(int8_classifier(tmp_path / "int8.onnx"))
    refuse_unfit(fp32_classifier(tmp_path / "fp32.onnx"))
    moved = onnx.load(tmp_path / "int8.onnx")
    (zero,) = (each for each in moved.graph.initializer if each.name == "zero")
    moved.graph.node.insert(0, helper.make_node("Constant", [], ["zero"], value=zero))
    moved.graph.initializer.remove(zero)
    onnx.save(moved, tmp_path / "constant.onnx")
    refuse_unfit(tmp_path / "constant.onnx")


def test_what_tensorrt_does_not_build_is_told_node_by_node(tmp_path: Path) -> None:
    unsigned = int8_classifier(tmp_path / "unsigned.onnx", activations=np.uint8)
    with pytest.raises(ConfigError) as failure:
        refuse_unfit(unsigned)
    assert failure.value.faults == (
        "unsigned.onnx: QuantizeLinear /q has a zero point other than int8 0; "
        "TensorRT wants S8 symmetric",
        "unsigned.onnx: DequantizeLinear /dq has a zero point other than int8 0; "
        "TensorRT wants S8 symmetric",
    )
    model = onnx.load(unsigned)
    model.graph.node[-1].op_type = "MatMulInteger"
    del model.graph.node[7].input[2]  # of QuantizeLinear: uint8 without it
    onnx.save(model, unsigned)
    with pytest.raises(ConfigError) as failure:
        refuse_unfit(unsigned)
    assert len(failure.value.faults) == 3
    assert "MatMulInteger logits is no QuantizeLinear" in failure.value.faults[-1]


def test_what_optimize_writes_a_gpu_host_can_build_and_prove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    preprocessor = prepared_bundle.preprocessor()
    fp32 = fp32_classifier(files / "fp32.onnx")
    session = get_backend("onnxruntime").load(fp32, threads=1)
    names = ["onnxruntime-fp32", "onnxruntime-int8-dynamic"]
    goldens = make_goldens(
        prepared_bundle.TEXTS,
        preprocessor,
        dict.fromkeys(names, (session, False)),
        keep_raw=False,
    )
    faster = standing(names[1], 2.0, certified(0))
    contents = Contents(
        files=dict.fromkeys(names, fp32),
        session_options={name: {} for name in names},
        preprocessor=preprocessor,
        goldens=goldens,
        drift={},
        prepared=prepared_bundle.make_prepared(files, goldens),
    )
    done = outcome(tmp_path, faster, shipped=(names[1],), chosen=names[1])
    write_bundle(done, contents)
    bundle = Bundle.open(done.config.output)
    assert bundle.chosen.name == names[1]
    assert len(bundle.prepared) == 2
    FakeTensorRt().install(monkeypatch)
    proofs, faults = build_and_prove(bundle, StateDir(tmp_path / "state"))
    assert faults == []
    assert [each.variant for each in proofs] == [each.name for each in bundle.prepared]
