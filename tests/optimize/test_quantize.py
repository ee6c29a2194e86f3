"""int8 files: what is quantised, how the weights are held, and that nothing else happens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from edgewright.backends import get_backend
from edgewright.checkpoint import Checkpoint
from edgewright.optimize import quantize as quantize_module
from edgewright.optimize.export import Export, Reference, export_onnx, save
from edgewright.optimize.origin import Origin
from edgewright.optimize.quantize import (
    Calibration,
    quantize_dynamic,
    quantize_static,
    to_fp16,
)
from edgewright.proof.logits import predict_logits

LAYERS = 2
PRODUCTS = 6 * LAYERS + 2  # query, key, value, output, two of the feed-forward; pooler, classifier


@pytest.fixture(scope="module")
def export(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Export:
    texts = list(checkpoint.examples().split("search").texts)
    folder = tmp_path_factory.mktemp("export")
    return export_onnx(
        Origin.of_checkpoint(checkpoint), folder, checkpoint.preprocessor().encode(texts)
    )


@pytest.fixture(scope="module")
def calibration(checkpoint: Checkpoint) -> Calibration:
    preprocessor = checkpoint.preprocessor()
    rows = preprocessor.encode(list(checkpoint.examples().split("calibrate").texts))
    return lambda: (preprocessor.pad([row]).arrays for row in rows)


@pytest.fixture(scope="module")
def static(
    export: Export, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, Path]:
    """QDQ files by ``reduce_range``."""
    folder = tmp_path_factory.mktemp("static")
    paths = {}
    for reduce_range in (False, True):
        paths[reduce_range] = folder / f"{reduce_range}.onnx"
        save(
            quantize_static(export.path, calibration, reduce_range=reduce_range),
            paths[reduce_range],
        )
    return paths


def int8_weights(path: Path) -> dict[str, np.ndarray]:
    """Two-dimensional int8 constants by name."""
    constants = onnx.load(path).graph.initializer
    arrays = {each.name: numpy_helper.to_array(each) for each in constants}
    return {name: a for name, a in arrays.items() if a.dtype == np.int8 and a.ndim == 2}


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def agreement(checkpoint: Checkpoint, path: Path, backend: str = "onnxruntime") -> float:
    """Share of search rows, each alone, that get the label PyTorch gives them."""
    rows = checkpoint.preprocessor().encode(list(checkpoint.examples().split("search").texts))
    session = get_backend(backend).load(path, threads=1)
    logits = predict_logits(session, checkpoint.preprocessor(), rows, one_row_at_a_time=True)
    expected = Reference(Origin.of_checkpoint(checkpoint)).logits(rows)
    return float(np.mean(logits.argmax(axis=1) == expected.argmax(axis=1)))


@pytest.mark.parametrize(("reduce_range", "largest"), [(False, 127), (True, 64)])
def test_dynamic_weights_are_int8_by_column(
    checkpoint: Checkpoint, export: Export, tmp_path: Path, reduce_range: bool, largest: int
) -> None:
    target = tmp_path / "dynamic.onnx"
    quantize_dynamic(export.path, target, reduce_range=reduce_range)
    weights = int8_weights(target)
    assert len(weights) == PRODUCTS
    constants = {each.name: each for each in onnx.load(target).graph.initializer}
    for name, weight in weights.items():
        assert np.abs(weight.astype(int)).max() in (largest, largest - 1), name
        scales = numpy_helper.to_array(constants[name.replace("_quantized", "_scale")])
        assert scales.shape == weight.shape[1:]
    assert operators(target)["MatMulInteger"] == PRODUCTS
    assert agreement(checkpoint, target) > 0.95


@pytest.mark.parametrize(("reduce_range", "largest"), [(False, 127), (True, 64)])
def test_static_weights_are_int8_by_column(
    checkpoint: Checkpoint, static: dict[bool, Path], reduce_range: bool, largest: int
) -> None:
    weights = int8_weights(static[reduce_range])
    products = [w for name, w in weights.items() if "embeddings" not in name]
    assert len(products) == PRODUCTS
    assert {int(np.abs(weight.astype(int)).max()) for weight in products} <= {largest, largest - 1}
    assert operators(static[reduce_range])["DynamicQuantizeLinear"] == 0
    assert agreement(checkpoint, static[reduce_range]) > 0.95
    assert agreement(checkpoint, static[reduce_range], "openvino") > 0.95


def test_fp16_keeps_the_types_of_inputs_and_outputs(
    checkpoint: Checkpoint, export: Export, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    to_fp16(export.path, first)
    to_fp16(export.path, second)
    assert first.read_bytes() == second.read_bytes()
    stored = onnx.load(first).graph.initializer
    assert {each.data_type for each in stored if len(each.dims) == 2} == {onnx.TensorProto.FLOAT16}
    session = get_backend("onnxruntime").load(first, threads=1)
    assert {spec.dtype for spec in session.inputs} == {"int64"}
    assert [spec.dtype for spec in session.outputs] == ["float32", "float32"]
    assert agreement(checkpoint, first) > 0.98


def test_static_leaves_what_collapses_in_float(static: dict[bool, Path]) -> None:
    model = ir.load(static[True])
    quantised = {
        use.node.op_type
        for node in model.graph
        if node.op_type == "DequantizeLinear"
        for use in node.outputs[0].uses()
    }
    assert quantised <= {"MatMul", "Gemm", "Gather", "Transpose", "Reshape"}


def test_the_same_input_gives_the_same_bytes(
    export: Export, calibration: Calibration, static: dict[bool, Path], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    for target in (first, second):
        quantize_dynamic(export.path, target, reduce_range=True)
    assert first.read_bytes() == second.read_bytes()
    save(quantize_static(export.path, calibration, reduce_range=True), first)
    assert first.read_bytes() == static[True].read_bytes()


def test_calibration_decides_the_activation_ranges(
    export: Export, calibration: Calibration, static: dict[bool, Path], tmp_path: Path
) -> None:
    """One row, again and again, is not the calibrate split."""
    narrow = tmp_path / "narrow.onnx"

    def first_row() -> Iterator[dict[str, np.ndarray]]:
        yield dict(next(iter(calibration())))

    save(quantize_static(export.path, first_row, reduce_range=True), narrow)
    assert narrow.read_bytes() != static[True].read_bytes()


def test_no_more_than_the_batches_allowed_are_drawn(
    export: Export, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_module, "CALIBRATION_BATCHES", 5)
    drawn = []

    def endless() -> Iterator[dict[str, np.ndarray]]:
        drawn.append(0)
        while True:
            for arrays in calibration():
                drawn[-1] += 1
                yield dict(arrays)

    quantize_static(export.path, endless, reduce_range=True)
    assert drawn
    assert max(drawn) <= 5


def test_the_source_and_its_folder_stay_as_they_were(
    export: Export, calibration: Calibration, tmp_path: Path
) -> None:
    before = export.path.read_bytes()
    quantize_dynamic(export.path, tmp_path / "dynamic.onnx", reduce_range=True)
    quantize_static(export.path, calibration, reduce_range=True)
    assert export.path.read_bytes() == before
    assert [file.name for file in export.path.parent.iterdir()] == [export.path.name]


def test_libraries_stay_silent_and_keep_out_of_the_home_folder(
    checkpoint_path: Path, tmp_path: Path
) -> None:
    """In a process of its own: NNCF behaves differently where pytest is loaded."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    code = f"""
import socket, sys
from pathlib import Path
def refuse(*_):
    raise AssertionError("a connection was tried")
socket.socket.connect = socket.getaddrinfo = refuse
from edgewright.checkpoint import Checkpoint
from edgewright.optimize.export import export_onnx
from edgewright.optimize.origin import Origin
from edgewright.optimize.quantize import quantize_dynamic, quantize_static
checkpoint = Checkpoint.open(Path({str(checkpoint_path)!r}))
preprocessor = checkpoint.preprocessor()
rows = preprocessor.encode(["the match", "new phone users of the network"])
export = export_onnx(Origin.of_checkpoint(checkpoint), Path({str(work)!r}), rows)
quantize_dynamic(export.path, Path({str(work / "dynamic.onnx")!r}), reduce_range=True)
batches = lambda: (preprocessor.pad([row]).arrays for row in rows)
quantize_static(export.path, batches, reduce_range=True)
assert "openvino_telemetry" not in sys.modules
"""
    env = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**env, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [str(path) for path in home.rglob("*") if path.is_file()] == []
