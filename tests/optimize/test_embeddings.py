"""Embedding tables as int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewright.backends import get_backend
from edgewright.optimize.embeddings import by_row, quantize_embeddings

RNG = np.random.default_rng(0)
TABLE = (RNG.normal(size=(300, 16)) * RNG.lognormal(sigma=2, size=(300, 1))).astype(np.float32)
TABLE[7] = 0


def write(path: Path, table: np.ndarray, *, gathers: int = 1, axis: int = 0) -> Path:
    """A model that gathers from one table, once or more, and adds what it got."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], [f"rows{index}"], f"gather{index}", axis=axis)
        for index in range(gathers)
    ]
    nodes.append(helper.make_node("Sum", [f"rows{index}" for index in range(gathers)], ["out"]))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", "length"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [ids], [out], [numpy_helper.from_array(table, "table")])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.mark.parametrize("gathers", [1, 2])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_rows_are_right_to_half_a_step_of_their_own_scale(
    tmp_path: Path, gathers: int, backend: str
) -> None:
    source = write(tmp_path / "a.onnx", TABLE, gathers=gathers)
    assert quantize_embeddings(source, tmp_path / "b.onnx")
    session = get_backend(backend).load(tmp_path / "b.onnx", threads=1)
    ids = np.arange(300).reshape(3, 100)
    (found,) = session.run({"ids": ids}).values()
    steps = np.abs(TABLE).max(axis=1, keepdims=True) / 127
    error = np.abs(found.reshape(300, 16) / gathers - TABLE)
    assert (error <= 0.5001 * steps).all()


def test_the_float_table_is_gone_and_is_stored_once(tmp_path: Path) -> None:
    source = write(tmp_path / "a.onnx", TABLE, gathers=2)
    quantize_embeddings(source, tmp_path / "b.onnx")
    stored = onnx.load(tmp_path / "b.onnx").graph.initializer
    assert sorted(each.name for each in stored) == ["table_int8", "table_scales"]
    assert (tmp_path / "b.onnx").stat().st_size < 0.5 * source.stat().st_size


@pytest.mark.parametrize(
    ("table", "axis"), [(TABLE[:3], 0), (TABLE, 1), (TABLE.astype(np.float64), 0)]
)
def test_what_is_no_table_of_embeddings_stays(tmp_path: Path, table: np.ndarray, axis: int) -> None:
    source = write(tmp_path / "a.onnx", table, axis=axis)
    assert not quantize_embeddings(source, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


def test_codes_fill_their_range_and_rows_of_zeros_stay_zero() -> None:
    codes, scales = by_row(TABLE)
    assert codes.dtype == np.int8
    assert scales.shape == (300, 1)
    assert set(np.abs(np.delete(codes, 7, axis=0)).max(axis=1)) == {127}
    assert not codes[7].any()
    assert scales[7] == 1
