"""ONNX files of a few nodes: a classifier of token ids, in fp32, in int8 with explicit Q and DQ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WORDS, WIDTH, CLASSES = 32, 16, 3
STEP = np.float32(0.05)  # of quantised activations


def ids(rows: int, length: int, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Inputs of any of the classifiers here."""
    rng = np.random.default_rng(seed)
    return {
        "input_ids": rng.integers(0, WORDS, (rows, length)),
        "attention_mask": np.ones((rows, length), np.int64),
    }


def fp32_classifier(path: Path) -> Path:
    """The mean of a text's embeddings, then a product."""
    table, weights = _weights()
    nodes = [
        *_pooled(),
        helper.make_node("MatMul", ["pooled", "weights"], ["logits"], name="/head"),
    ]
    return _save(path, nodes, {"table": table, "weights": weights})


def int8_classifier(path: Path, *, activations: Any = np.int8, heads: int = 1) -> Path:
    """The same, quantised; several heads share one activation, and their logits are summed.

    ONNX Runtime on a CPU has no kernel for int8 activations that several products share.
    """
    table, weights = _weights()
    scale = (np.abs(weights).max(axis=0) / 127).astype(np.float32)
    rounded = np.round(weights / scale).astype(np.int8)
    zero = np.array(128 if activations is np.uint8 else 0, activations)
    nodes = [
        *_pooled(),
        helper.make_node("QuantizeLinear", ["pooled", "step", "zero"], ["q"], name="/q"),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"], name="/dq"),
    ]
    for head in range(heads):
        nodes += [
            helper.make_node(
                "DequantizeLinear", ["weights", "scale", "none"], [f"w{head}"], axis=1
            ),
            helper.make_node("MatMul", ["dq", f"w{head}"], [f"y{head}"], name=f"/head.{head}"),
        ]
    nodes.append(helper.make_node("Sum", [f"y{head}" for head in range(heads)], ["logits"]))
    constants = {
        "table": table, "weights": rounded, "scale": scale, "none": np.zeros(CLASSES, np.int8),
        "step": STEP, "zero": zero,
    }  # fmt: skip
    return _save(path, nodes, constants)


def _weights() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(WORDS, WIDTH)).astype(np.float32)
    return table, rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)


def _pooled() -> list[Any]:
    return [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"], name="/embed"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["embedded", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["wide", "tokens"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["pooled"]),
    ]


def _save(path: Path, nodes: list[Any], constants: dict[str, Any]) -> Path:
    constants = {**constants, "last": np.array([2]), "tokens": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "classifier",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", CLASSES])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
