"""The graph pass: ONNX Runtime's own operators give the numbers that the QDQ graph stands for.

Each QDQ graph is run as it is written, without any optimisation, and the rewritten one as it is
served. Weights have 7 bits, so that no host saturates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgewright.backends import get_backend
from edgewright.optimize.onnxruntime_graph import for_onnxruntime

ROWS, LENGTH, WIDTH, OUT = 3, 5, 16, 8
RNG = np.random.default_rng(0)


class Graph:
    """A QDQ graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def activation(self, source: str, zero_point: Any = np.int8(-7)) -> str:
        """Quantize and dequantize."""
        scale = self.constant(f"{source}_s", np.float32(0.03))
        zero = self.constant(f"{source}_z", np.asarray(zero_point))
        codes = self.node("QuantizeLinear", [source, scale, zero], f"{source}_q")
        return self.node("DequantizeLinear", [codes, scale, zero], f"{source}_dq")

    def weight(self, name: str, shape: tuple[int, int], axis: int | None) -> str:
        """A dequantised int8 weight; per tensor where ``axis`` is None."""
        values = self.constant(f"{name}_q", RNG.integers(-64, 65, shape, dtype=np.int8))
        channels = () if axis is None else (shape[axis],)
        scale = self.constant(f"{name}_s", RNG.uniform(0.01, 0.05, channels).astype(np.float32))
        zero = self.constant(f"{name}_z", np.zeros(channels, np.int8))
        axes = {} if axis is None else {"axis": axis}
        return self.node("DequantizeLinear", [values, scale, zero], f"{name}_dq", **axes)

    def model(self, outputs: dict[str, int], ids: bool = False) -> onnx.ModelProto:
        kind, shape = (TensorProto.INT64, [None] * 2) if ids else (TensorProto.FLOAT, [None] * 3)
        graph = helper.make_graph(
            self.nodes,
            "qdq",
            [helper.make_tensor_value_info("x", kind, shape)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
                for name, rank in outputs.items()
            ],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model


def rewritten(model: onnx.ModelProto, path: Path) -> tuple[Path, Counter[str]]:
    form = ir.from_proto(model)
    for_onnxruntime(form)
    ir.save(form, path)
    return path, Counter(node.op_type for node in form.graph)


def as_written(model: onnx.ModelProto, x: NDArray[Any]) -> dict[str, NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


def assert_same_answers(
    model: onnx.ModelProto, path: Path, x: NDArray[Any], atol: float = 1e-5
) -> Counter[str]:
    file, operators = rewritten(model, path)
    expected = as_written(model, x)
    answers = get_backend("onnxruntime").load(file, threads=1).run({"x": x}, list(expected))
    assert answers.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(answers[name], value, atol=atol, err_msg=name)
        assert value.std() > 0.1
    return operators


@pytest.fixture
def x() -> NDArray[np.float32]:
    return RNG.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("axis", [1, -1, None])
@pytest.mark.parametrize("bias_first", [False, True])
def test_a_product_and_its_bias_become_one_integer_product(
    tmp_path: Path, x: NDArray[np.float32], axis: int | None, bias_first: bool
) -> None:
    graph = Graph()
    operands = [graph.activation("x"), graph.weight("w", (WIDTH, OUT), axis)]
    product = graph.node("MatMul", operands, "product")
    bias = graph.constant("bias", RNG.normal(size=OUT).astype(np.float32))
    graph.node("Add", [bias, product] if bias_first else [product, bias], "y")
    operators = assert_same_answers(graph.model({"y": 3}), tmp_path / "m.onnx", x)
    assert operators == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}


def test_query_key_and_value_share_one_quantised_activation(
    tmp_path: Path, x: NDArray[np.float32]
) -> None:
    graph = Graph()
    shared = graph.activation("x")
    for name in ("query", "key", "value"):
        graph.node("MatMul", [shared, graph.weight(f"w_{name}", (WIDTH, OUT), 1)], name)
    model = graph.model({"query": 3, "key": 3, "value": 3})
    operators = assert_same_answers(model, tmp_path / "m.onnx", x)
    assert operators == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 3}


def test_a_residual_beside_a_product_reads_the_unrounded_activation(
    tmp_path: Path, x: NDArray[np.float32]
) -> None:
    graph = Graph()
    rounded = graph.activation("x")
    product = graph.node("MatMul", [rounded, graph.weight("w", (WIDTH, WIDTH), 1)], "product")
    graph.node("Add", [product, rounded], "y")
    model = graph.model({"y": 3})
    operators = assert_same_answers(model, tmp_path / "m.onnx", x, atol=0.03 / 2 + 1e-5)
    assert operators == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1, "Add": 1}
    answers = get_backend("onnxruntime").load(tmp_path / "m.onnx", threads=1).run({"x": x})
    exact = as_written(model, x)["y"] + x - as_written_activation(x)
    np.testing.assert_allclose(answers["y"], exact, atol=1e-5)


def as_written_activation(x: NDArray[np.float32]) -> NDArray[np.float32]:
    graph = Graph()
    graph.node("Identity", [graph.activation("x")], "y")
    return np.asarray(as_written(graph.model({"y": 3}), x)["y"])


def test_codes_that_were_moved_since_are_still_found(
    tmp_path: Path, x: NDArray[np.float32]
) -> None:
    """NNCF quantises before a Transpose or Reshape where that is the same."""
    graph = Graph()
    turned = graph.node("Transpose", [graph.activation("x")], "turned", perm=[1, 0, 2])
    shape = graph.constant("shape", np.array([LENGTH, -1, WIDTH // 2]))
    halves = graph.node("Reshape", [turned, shape], "halves")
    graph.node("MatMul", [halves, graph.weight("w", (WIDTH // 2, OUT), 1)], "y")
    operators = assert_same_answers(graph.model({"y": 3}), tmp_path / "m.onnx", x)
    assert operators["MatMulIntegerToFloat"] == 1
    assert operators["DequantizeLinear"] == 0


def test_a_gemm_with_a_transposed_weight_keeps_its_bias(
    tmp_path: Path, x: NDArray[np.float32]
) -> None:
    graph = Graph()
    first = graph.constant("first", np.array(0))
    pooled = graph.node("Gather", ["x", first], "pooled", axis=1)
    bias = graph.constant("bias", RNG.normal(size=OUT).astype(np.float32))
    operands = [graph.activation(pooled), graph.weight("w", (OUT, WIDTH), 0), bias]
    graph.node("Gemm", operands, "y", transB=1)
    operators = assert_same_answers(graph.model({"y": 2}), tmp_path / "m.onnx", x)
    assert operators == {"Gather": 1, "QuantizeLinear": 1, "MatMulIntegerToFloat": 1}


def test_unsigned_activations_are_taken_as_they_are(tmp_path: Path, x: NDArray[np.float32]) -> None:
    graph = Graph()
    rounded = graph.activation("x", np.uint8(121))
    graph.node("MatMul", [rounded, graph.weight("w", (WIDTH, OUT), 1)], "y")
    operators = assert_same_answers(graph.model({"y": 3}), tmp_path / "m.onnx", x)
    assert operators == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}


@pytest.mark.parametrize("axis", [0, None])
def test_embedding_rows_are_gathered_as_integers(tmp_path: Path, axis: int | None) -> None:
    graph = Graph()
    graph.node("Gather", [graph.weight("table", (50, WIDTH), axis), "x"], "y")
    ids = RNG.integers(0, 50, (ROWS, LENGTH))
    path = tmp_path / "m.onnx"
    operators = assert_same_answers(graph.model({"y": 3}, ids=True), path, ids)
    assert operators["DequantizeLinear"] == 0
    stored = {each.name: each.data_type for each in onnx.load(path).graph.initializer}
    assert stored["table_q"] == TensorProto.INT8


def test_products_of_two_activations_stay_float(tmp_path: Path, x: NDArray[np.float32]) -> None:
    graph = Graph()
    query = graph.activation("x")
    key = graph.node("Transpose", [query], "key", perm=[0, 2, 1])
    graph.node("MatMul", [query, key], "y")
    model = graph.model({"y": 3})
    path, operators = rewritten(model, tmp_path / "m.onnx")
    assert operators == {"Transpose": 1, "MatMul": 1}
    answers = get_backend("onnxruntime").load(path, threads=1).run({"x": x})
    np.testing.assert_allclose(answers["y"], x @ x.transpose(0, 2, 1), rtol=1e-4, atol=1e-5)


def test_a_bias_that_others_read_too_stays_outside(tmp_path: Path, x: NDArray[np.float32]) -> None:
    graph = Graph()
    operands = [graph.activation("x"), graph.weight("w", (WIDTH, OUT), 1)]
    product = graph.node("MatMul", operands, "product")
    bias = graph.constant("bias", RNG.normal(size=OUT).astype(np.float32))
    graph.node("Add", [product, bias], "y")
    model = graph.model({"y": 3, "product": 3})
    operators = assert_same_answers(model, tmp_path / "m.onnx", x)
    assert operators["Add"] == 1


@pytest.mark.parametrize("axis", [0, None])
def test_weights_that_no_integer_product_takes_are_stored_as_float(
    tmp_path: Path, x: NDArray[np.float32], axis: int | None
) -> None:
    """Scales by input row cannot leave the sum: ONNX Runtime would dequantise at every call."""
    graph = Graph()
    graph.node("MatMul", ["x", graph.weight("w", (WIDTH, OUT), axis)], "y")
    operators = assert_same_answers(graph.model({"y": 3}), tmp_path / "m.onnx", x)
    assert operators == {"MatMul": 1}
