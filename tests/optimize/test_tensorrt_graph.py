"""NNCF's QDQ in the form that TensorRT reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from tiny_vision import SIDE, vision_model
from vision_checkpoint import vision_checkpoint

from edgewright.backends import get_backend
from edgewright.checkpoint import Checkpoint
from edgewright.model_file import LOGITS
from edgewright.optimize.export import Reference, export_onnx, save
from edgewright.optimize.inputs import rows_of
from edgewright.optimize.origin import Origin
from edgewright.optimize.quantize import quantize_static
from edgewright.optimize.tensorrt_graph import for_tensorrt
from edgewright.proof.logits import predict_logits

PRODUCTS = 6 * 2 + 2  # of the small BERT's two layers; pooler and classifier


def rewritten(export: Path, calibration, target: Path) -> onnx.GraphProto:
    model = quantize_static(export, calibration, reduce_range=False)
    for_tensorrt(model)
    save(model, target)
    return onnx.load(target).graph


def check_form(graph: onnx.GraphProto) -> None:
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    nodes = [each for each in graph.node if each.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert nodes
    for node in nodes:
        zero_point = constants[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[1]].size == 1
    assert not [each for each in constants.values() if each.dtype in (np.int32, np.uint8)]


def test_products_have_symmetric_int8_activations_and_weights_by_channel(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    preprocessor, examples = checkpoint.preprocessor(), checkpoint.examples()
    rows = preprocessor.encode(list(examples.split("search").texts))
    calibrate = preprocessor.encode(list(examples.split("calibrate").texts))
    export = export_onnx(Origin.of_checkpoint(checkpoint), tmp_path, rows).path
    target = tmp_path / "tensorrt.onnx"
    graph = rewritten(export, lambda: (preprocessor.pad([row]).arrays for row in calibrate), target)
    check_form(graph)
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    weights = [a for n, a in arrays.items() if a.dtype == np.int8 and a.ndim == 2]
    assert len(weights) >= PRODUCTS
    expected = Reference(Origin.of_checkpoint(checkpoint)).logits(rows)
    session = get_backend("openvino").load(target, threads=1)
    logits = predict_logits(session, preprocessor, rows, one_row_at_a_time=True)
    assert np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)) > 0.95


def test_activations_that_are_never_negative_become_signed_too(tmp_path: Path) -> None:
    """After ReLU NNCF takes all 256 steps for what is above zero."""
    checkpoint = vision_checkpoint(tmp_path / "c", vision_model("resnet", 10), SIDE)
    preprocessor = checkpoint.preprocessor()
    rows = rows_of(preprocessor, checkpoint.examples().split("search"))
    export = export_onnx(Origin.of_checkpoint(checkpoint), tmp_path, rows).path
    target = tmp_path / "tensorrt.onnx"
    check_form(rewritten(export, lambda: (preprocessor.pad([row]).arrays for row in rows), target))
    arrays = preprocessor.pad(rows).arrays
    load = get_backend("onnxruntime").load
    quantized = load(target, threads=1).run(arrays)[LOGITS]
    plain = load(export, threads=1).run(arrays)[LOGITS]
    assert np.abs(quantized - plain).max() < 0.2 * np.ptp(plain)


@pytest.mark.parametrize(
    ("zero_point", "low", "high"),
    [(np.uint8(64), -0.64, 1.91), (np.int8(-128), 0.0, 2.55), (np.uint8(255), -2.55, 0.0)],
)
def test_the_symmetric_range_holds_the_old_one_and_no_more(
    tmp_path: Path, zero_point, low: float, high: float
) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["out"]),
    ]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in ("x", "out")
    ]
    constants = [
        numpy_helper.from_array(np.float32(0.01), "scale"),
        numpy_helper.from_array(np.array(zero_point), "zero"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    opset = [helper.make_opsetid("", 17)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))
    for_tensorrt(model)
    save(model, tmp_path / "a.onnx")
    x = np.float32([low, high, 0.0, 9.0, -9.0])
    (found,) = (
        get_backend("onnxruntime").load(tmp_path / "a.onnx", threads=1).run({"x": x}).values()
    )
    reach = max(-low, high)
    assert found[:3] == pytest.approx(x[:3], abs=reach / 127)
    assert found[3] == pytest.approx(reach, abs=1e-5)
    assert found[4] == pytest.approx(-reach * 128 / 127, abs=1e-5)
