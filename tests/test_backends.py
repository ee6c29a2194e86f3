"""Runtimes behind one contract, on a real ONNX file that is small enough to compute by hand."""

from __future__ import annotations

import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgewright.backends import (
    BACKENDS,
    TensorSpec,
    get_backend,
    installed_backends,
    openvino,
    softmax,
)
from edgewright.errors import BackendUnavailableError, IntegrityError
from edgewright.proof.host import available_cores

# Whole numbers this small are exact in bfloat16 too, which OpenVINO chooses by itself on some CPUs.
TABLE = np.array([[0, 0], [1, -1], [2, 0], [-1, 3]], dtype=np.float32)
HEAD = np.array([[1, 0, 2], [0, 1, -1]], dtype=np.float32)
# Those that run anywhere; the ones for a GPU have tests of their own.
INSTALL = {"onnxruntime": "edgewright[serve]", "openvino": "edgewright[openvino]"}


def classifier(path: Path) -> Path:
    """Embeddings summed over a text's tokens, then a linear head of three classes."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["embedded", "weights"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "length_axis"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    constants = {
        "table": TABLE, "head": HEAD, "last": np.array([-1]), "length_axis": np.array([1]),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "classifier",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def by_hand(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
    kept = TABLE[input_ids] * attention_mask[..., None]
    return np.asarray(kept.sum(axis=1) @ HEAD, dtype=np.float32)


def batch(rows: int, length: int) -> dict[str, NDArray[np.int64]]:
    rng = np.random.default_rng(rows * 100 + length)
    return {
        "input_ids": rng.integers(0, 4, (rows, length)),
        "attention_mask": rng.integers(0, 2, (rows, length)),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(params=list(INSTALL))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_both_runtimes_are_installed_for_developers() -> None:
    assert list(BACKENDS)[: len(INSTALL)] == list(INSTALL)
    assert set(INSTALL) <= set(installed_backends())


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 7), (3, 5), (16, 2)])
def test_every_runtime_gives_the_numbers_computed_by_hand(
    model: Path, name: str, rows: int, length: int
) -> None:
    session = get_backend(name).load(model, threads=1)
    inputs = batch(rows, length)
    outputs = session.run(inputs)
    assert list(outputs) == ["logits"]
    assert outputs["logits"].dtype == np.float32
    np.testing.assert_array_equal(outputs["logits"], by_hand(**inputs))


def test_a_session_tells_what_goes_in_and_out(model: Path, name: str) -> None:
    session = get_backend(name).load(model, threads=1)
    assert session.inputs == (
        TensorSpec("input_ids", "int64", (-1, -1)),
        TensorSpec("attention_mask", "int64", (-1, -1)),
    )
    assert session.outputs == (TensorSpec("logits", "float32", (-1, 3)),)


def test_one_session_takes_any_size_and_its_answers_are_the_callers_to_keep(
    model: Path, name: str
) -> None:
    session = get_backend(name).load(model, threads=2)
    sizes = [(4, 3), (4, 3), (1, 9), (2, 2)]
    inputs = [batch(*size) for size in sizes]
    kept = [session.run(each)["logits"] for each in inputs]
    for each, logits in zip(inputs, kept, strict=True):
        np.testing.assert_array_equal(logits, by_hand(**each))


def test_inputs_are_left_as_they_were(model: Path, name: str) -> None:
    session = get_backend(name).load(model, threads=1)
    inputs = batch(3, 4)
    session.run(inputs)
    for key, array in batch(3, 4).items():
        np.testing.assert_array_equal(inputs[key], array)


def test_the_runtime_is_named_with_its_version_and_no_more(name: str) -> None:
    assert re.fullmatch(rf"{name} \d+\.\d+\.\d+", get_backend(name).runtime())


def test_threads_and_options_reach_onnxruntime(model: Path) -> None:
    options = {"session.disable_prepacking": "1"}
    session: Any = get_backend("onnxruntime").load(model, threads=2, options=options)
    given = session._session.get_session_options()
    assert (given.intra_op_num_threads, given.inter_op_num_threads) == (2, 1)
    assert given.get_session_config_entry("session.disable_prepacking") == "1"
    assert given.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert session._session.get_providers() == ["CPUExecutionProvider"]


def test_threads_and_options_reach_openvino(model: Path) -> None:
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    session: Any = get_backend("openvino").load(model, threads=2, options=options)
    compiled = session._request.get_compiled_model()
    # OpenVINO takes no more than there are cores.
    assert compiled.get_property("INFERENCE_NUM_THREADS") == min(2, available_cores())
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


@pytest.mark.parametrize("threads", [1, 2])
def test_instances_run_at_once_and_give_what_one_session_gives(
    model: Path, name: str, threads: int
) -> None:
    sessions = get_backend(name).load_instances(model, 3, threads=threads)
    assert len(sessions) == 3
    inputs = [batch(1 + number % 5, 1 + number % 7) for number in range(60)]
    started = threading.Barrier(3)

    def run(number: int) -> list[NDArray[Any]]:
        started.wait(30)
        return [sessions[number].run(each)["logits"] for each in inputs]

    with ThreadPoolExecutor(3) as pool:
        for logits in pool.map(run, range(3)):
            for each, got in zip(inputs, logits, strict=True):
                np.testing.assert_array_equal(got, by_hand(**each))


def test_instances_without_threads_of_their_own_are_one_session_of_onnxruntime(model: Path) -> None:
    backend = get_backend("onnxruntime")
    assert len(set(backend.load_instances(model, 3, threads=1))) == 1
    assert len(set(backend.load_instances(model, 3, threads=2))) == 3


def test_instances_of_openvino_share_one_compiled_model(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []
    plain = openvino._compiled

    def spy(path: Path, streams: int, threads: int, options: Any) -> Any:
        compiled.append(plain(path, streams, threads, options))
        return compiled[-1]

    monkeypatch.setattr(openvino, "_compiled", spy)
    sessions: Any = get_backend("openvino").load_instances(model, 2, threads=1)
    assert len(compiled) == 1
    assert len({id(each._request) for each in sessions}) == 2


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x08" + b"\xff" * 100])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"cannot load .*broken\.onnx"):
        get_backend(name).load(path, threads=1)


def test_a_truncated_model_is_named(tmp_path: Path, model: Path, name: str) -> None:
    path = tmp_path / "half.onnx"
    path.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    with pytest.raises(IntegrityError, match=r"half\.onnx"):
        get_backend(name).load(path, threads=1)


def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(IntegrityError, match=r"none\.onnx"):
        get_backend(name).load(tmp_path / "none.onnx", threads=1)


def test_an_unknown_backend_is_told_with_those_there_are() -> None:
    with pytest.raises(BackendUnavailableError, match="no backend 'cuda'; there are: onnxruntime"):
        get_backend("cuda")


def test_a_missing_library_is_told_with_how_to_install_it(
    model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = get_backend(name)
    monkeypatch.setitem(sys.modules, name, None)  # import now raises ImportError
    told = re.escape(f"pip install '{INSTALL[name]}'")
    with pytest.raises(BackendUnavailableError, match=told):
        get_backend(name)
    with pytest.raises(BackendUnavailableError, match=told):
        backend.load(model, threads=1)
    left = installed_backends()
    assert name not in left
    assert {other for other in INSTALL if other != name} <= set(left)


@settings(deadline=None)  # a busy machine is no failure
@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=5),
        elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    )
)
def test_softmax_is_scipys_and_sums_to_one(logits: NDArray[np.float32]) -> None:
    scores = softmax(logits)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
    expected = scipy.special.softmax(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-37)


def test_softmax_does_not_overflow() -> None:
    scores = softmax(np.array([[3e38, -3e38], [-3e38, -3e38]], dtype=np.float32))
    np.testing.assert_array_equal(scores, [[1, 0], [0.5, 0.5]])
