"""Image models through export, quantisation and goldens."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tiny_vision import SIDE, USER_CODE, vision_model
from vision_checkpoint import vision_checkpoint

from edgewright.backends import get_backend
from edgewright.errors import ConfigError, IntegrityError
from edgewright.factories import Factory, FactoryClassifier
from edgewright.model_file import LOGITS
from edgewright.optimize.config import OptimizeConfig
from edgewright.optimize.drift import drift_reference
from edgewright.optimize.export import TOLERANCE, Reference, export_onnx
from edgewright.optimize.inputs import Inputs, rows_of
from edgewright.optimize.onnxruntime_graph import unsigned_activations
from edgewright.optimize.origin import Origin
from edgewright.optimize.quantize import is_convolutional, quantize_static
from edgewright.optimize.recipes import Materials
from edgewright.optimize.workshop import Probe, build_candidates
from edgewright.proof.goldens import PIXELS, Goldens, golden_scores, make_goldens

FAMILIES = ["resnet", "vit", "convnext", "mobilenet_v2", "efficientnet"]


@pytest.fixture
def users_code(tmp_path, monkeypatch):
    (tmp_path / "users_code.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("users_code", None)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resnet")
    checkpoint = vision_checkpoint(folder / "c", vision_model("resnet", 10), SIDE)
    rows = rows_of(checkpoint.preprocessor(), checkpoint.examples().split("search"))
    return checkpoint, rows, export_onnx(Origin.of_checkpoint(checkpoint), folder, rows)


def check_export(checkpoint, folder: Path) -> None:
    rows = rows_of(checkpoint.preprocessor(), checkpoint.examples().split("search"))
    export = export_onnx(Origin.of_checkpoint(checkpoint), folder, rows)
    session = get_backend("onnxruntime").load(export.path, threads=1)
    (spec,) = session.inputs
    assert (spec.name, spec.dtype) == ("pixel_values", "float32")
    assert spec.shape == checkpoint.preprocessor().input_shape
    arrays = checkpoint.preprocessor().pad(rows[:5]).arrays
    found = session.run(arrays)[LOGITS]
    assert (
        np.abs(found - Reference(Origin.of_checkpoint(checkpoint)).logits(rows[:5])).max()
        < TOLERANCE
    )
    before = export.path.read_bytes()
    assert export_onnx(Origin.of_checkpoint(checkpoint), folder, rows).path.read_bytes() == before


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_family_is_exported_as_pytorch_answers(kind: str, tmp_path: Path) -> None:
    checkpoint = vision_checkpoint(tmp_path / "c", vision_model(kind, 10), SIDE)
    check_export(checkpoint, tmp_path)


@pytest.mark.usefixtures("users_code")
def test_a_users_module_is_exported_as_pytorch_answers(tmp_path: Path) -> None:
    factory = Factory("users_code", "net")
    model = FactoryClassifier.make(factory, [str(digit) for digit in range(10)], seed=0).eval()
    checkpoint = vision_checkpoint(tmp_path / "c", model, 16)
    check_export(checkpoint, tmp_path)


def test_convolutions_are_told_from_products(resnet, tmp_path: Path) -> None:
    assert is_convolutional(resnet[2].path)
    vit = vision_checkpoint(tmp_path / "c", vision_model("vit", 10), SIDE)
    rows = rows_of(vit.preprocessor(), vit.examples().split("search"))
    assert not is_convolutional(export_onnx(Origin.of_checkpoint(vit), tmp_path, rows).path)


def test_convolutions_become_int8_with_unsigned_activations_by_tensor(resnet, tmp_path) -> None:
    checkpoint, rows, export = resnet
    preprocessor = checkpoint.preprocessor()
    model = quantize_static(
        export.path,
        lambda: (preprocessor.pad([row]).arrays for row in rows),
        reduce_range=True,
    )
    unsigned_activations(model)
    (tmp_path / "int8.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    graph = onnx.load(tmp_path / "int8.onnx").graph
    values = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    activations = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert activations
    for node in activations:
        assert values[node.input[1]].size == 1
        assert values[node.input[2]].dtype == np.uint8
    arrays = preprocessor.pad(rows).arrays
    load = get_backend("onnxruntime").load
    quantized = load(tmp_path / "int8.onnx", threads=1).run(arrays)[LOGITS]
    plain = load(export.path, threads=1).run(arrays)[LOGITS]
    assert np.abs(quantized - plain).max() < 0.15 * np.ptp(plain)


def test_a_convolutional_network_has_no_dynamic_variant(resnet, tmp_path: Path) -> None:
    checkpoint, rows, export = resnet
    preprocessor = checkpoint.preprocessor()
    materials = Materials(
        export=export,
        folder=tmp_path,
        calibration=lambda: (preprocessor.pad([row]).arrays for row in rows),
        backends=["onnxruntime"],
        reduce_range=True,
        bf16=False,
    )
    candidates, skipped = build_candidates(materials, Probe(preprocessor, rows))
    assert [each.name for each in candidates] == ["onnxruntime-fp32", "onnxruntime-int8-static"]
    assert all(each.batch_invariant for each in candidates)
    reasons = {each.name: each.reason for each in skipped}
    assert "convolutions" in reasons["onnxruntime-int8-dynamic"]
    assert "convolutions" in reasons["onnxruntime-int8-dynamic-embeddings"]


def test_a_workload_of_another_height_is_refused(resnet, tmp_path: Path) -> None:
    checkpoint, _, _ = resnet
    config = OptimizeConfig(checkpoint.path, tmp_path / "b", workload="1x224")
    with pytest.raises(ConfigError, match=r"images of 32 pixels in height.* 1x32,8x32"):
        Inputs.open(config)
    own = Inputs.open(OptimizeConfig(checkpoint.path, tmp_path / "b"))
    assert str(own.workload) == "1x32:0.5,8x32:0.5"


def test_goldens_keep_files_and_pixels_and_find_other_ones(resnet, tmp_path: Path) -> None:
    checkpoint, _, export = resnet
    preprocessor = checkpoint.preprocessor()
    raw = [image.read() for image in checkpoint.examples().split("search").images[:10]]
    session = get_backend("onnxruntime").load(export.path, threads=1)
    made = make_goldens(raw, preprocessor, {"v": (session, False)}, keep_raw=True)
    made.save(tmp_path)
    loaded = Goldens.load(tmp_path)
    assert loaded.raw == tuple(raw)
    assert loaded.inputs[PIXELS].shape == (10, SIDE, SIDE, 3)
    again = golden_scores(session, preprocessor, loaded.inputs, loaded.batch_rows)
    assert np.array_equal(again, loaded.scores["v"])
    (tmp_path / "goldens.json").write_text('{"images": ["?"]}')
    with pytest.raises(IntegrityError, match="cannot be read"):
        Goldens.load(tmp_path)


def test_drift_of_images_is_their_brightness(resnet) -> None:
    checkpoint, rows, _ = resnet
    scores = np.full((len(rows), 2), 0.5, np.float32)
    found = drift_reference(rows, checkpoint.preprocessor().kind, {"v": scores}, ["a", "b"])
    assert "token_lengths" not in found
    counts = np.array(found["brightness"]["counts"])
    means = [row.pixels.mean() for row in rows]
    assert counts.sum() == len(rows)
    assert counts[int(means[0] // 16)] >= 1
