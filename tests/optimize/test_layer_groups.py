"""Groups of layers, back in float and behind switches: the numbers are those of fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from mixed_cases import Case, depthwise_case, operators, quantized_case

from edgewright.backends import get_backend
from edgewright.checkpoint import Checkpoint
from edgewright.errors import ConfigError
from edgewright.model_file import LOGITS
from edgewright.optimize.export import save
from edgewright.optimize.layer_groups import LayerGroup, find_groups, lift_constants
from edgewright.optimize.restore import restore
from edgewright.optimize.switch_graph import SWITCHES, add_switches

# Dequantises weights once and fuses nothing: the numbers that the graph stands for.
AS_WRITTEN = {"session.disable_quant_qdq": "1"}


@pytest.fixture(scope="module")
def text(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return quantized_case(checkpoint, tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return depthwise_case(tmp_path_factory.mktemp("image"))


@pytest.fixture(params=["text", "image"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


def models(case: Case) -> tuple[ir.Model, ir.Model]:
    return lift_constants(ir.load(case.quantized)), lift_constants(ir.load(case.fp32))


def groups(case: Case) -> list[LayerGroup]:
    return find_groups(*models(case))


def restored(case: Case, which: list[LayerGroup], file: Path) -> Path:
    quantized, fp32 = models(case)
    restore(quantized, fp32, which)
    save(quantized, file)
    return file


def run(file: Path, case: Case, **more: np.ndarray) -> np.ndarray:
    session = get_backend("onnxruntime").load(file, threads=1, options=AS_WRITTEN)
    arrays = case.preprocessor.pad(list(case.search[:8])).arrays
    return session.run({**arrays, **more})[LOGITS]


def assert_same(found: np.ndarray, expected: np.ndarray, case: Case) -> None:
    """Far closer than int8 is to fp32.

    Sums in another order may put a value on the other side of a rounding boundary.
    """
    moved = np.abs(run(case.quantized, case) - run(case.fp32, case)).max()
    assert np.abs(found - expected).max() < 0.1 * moved


def test_groups_of_a_bert_have_names_that_people_know(text: Case) -> None:
    names = [each.name for each in groups(text)]
    assert names[:8] == [
        "bert/embeddings/word_embeddings",
        "bert/embeddings/token_type_embeddings",
        "bert/embeddings/position_embeddings",
        "bert/encoder/layer.0/attention/self: query, key, value",
        "bert/encoder/layer.0/attention/self/MatMul",
        "bert/encoder/layer.0/attention/output/dense",
        "bert/encoder/layer.0/intermediate/dense",
        "bert/encoder/layer.0/output/dense",
    ]
    assert names[-2:] == ["bert/pooler/dense", "classifier"]
    assert len(set(names)) == len(names) == 15
    without = [each.name for each in groups(text) if not each.has_weights]
    assert without == [f"bert/encoder/layer.{layer}/attention/self/MatMul" for layer in (0, 1)]


def test_groups_of_an_image_model_are_named_by_their_weights(image: Case) -> None:
    names = [each.name for each in groups(image)]
    assert "model/module/blocks/0/depthwise" in names
    assert "model/module/stem" in names
    assert "model/module/head" in names


def test_all_groups_back_are_the_fp32_model(case: Case, tmp_path: Path) -> None:
    """SmoothQuant's scales and the corrected biases go with the quantisers."""
    file = restored(case, groups(case), tmp_path / "all.onnx")
    assert "QuantizeLinear" not in operators(file)
    assert "DequantizeLinear" not in operators(file)
    assert sorted(operators(file).count(op) for op in ("MatMul", "Gemm", "Conv")) == sorted(
        operators(case.fp32).count(op) for op in ("MatMul", "Gemm", "Conv")
    )
    assert operators(file).count("Mul") == operators(case.fp32).count("Mul")
    assert_same(run(file, case), run(case.fp32, case), case)


def test_one_group_back_changes_its_own_nodes_only(text: Case, tmp_path: Path) -> None:
    back = next(each for each in groups(text) if each.name.endswith("query, key, value"))
    file = restored(text, [back], tmp_path / "one.onnx")
    before, after = operators(text.quantized), operators(file)
    assert before.count("QuantizeLinear") - after.count("QuantizeLinear") == 1
    assert before.count("DequantizeLinear") - after.count("DequantizeLinear") == 4
    assert before.count("Mul") - after.count("Mul") == 1  # SmoothQuant's
    constants = ir.load(text.fp32).graph.initializers
    kept = {each.source for each in back.inputs if each.source in constants}
    stored = ir.load(file).graph.initializers
    assert {name for name in kept if "bias" not in name}
    assert all(
        np.array_equal(
            stored[f"{name}_float"].const_value.numpy(), constants[name].const_value.numpy()
        )
        for name in kept
    )


def test_a_bias_that_was_corrected_goes_back_too(text: Case) -> None:
    quantized, fp32 = models(text)
    corrected = {
        name
        for name, value in fp32.graph.initializers.items()
        if name in quantized.graph.initializers
        and not np.array_equal(
            value.const_value.numpy(), quantized.graph.initializers[name].const_value.numpy()
        )
    }
    assert corrected
    assert corrected <= {each.source for group in groups(text) for each in group.inputs}


@pytest.mark.parametrize("seed", range(3))
def test_switches_give_what_the_restored_file_gives(case: Case, tmp_path: Path, seed: int) -> None:
    found = groups(case)
    quantized, fp32 = models(case)
    add_switches(quantized, fp32, found)
    save(quantized, tmp_path / "switches.onnx")
    int8 = np.random.default_rng(seed).random(len(found)) < 0.5
    back = [group for group, is_int8 in zip(found, int8, strict=True) if not is_int8]
    expected = run(restored(case, back, tmp_path / "some.onnx"), case)
    switched = run(tmp_path / "switches.onnx", case, **{SWITCHES: int8})
    assert_same(switched, expected, case)
    none = run(tmp_path / "switches.onnx", case, **{SWITCHES: np.zeros(len(found), bool)})
    assert_same(none, run(case.fp32, case), case)
    whole = run(tmp_path / "switches.onnx", case, **{SWITCHES: np.ones(len(found), bool)})
    assert_same(whole, run(case.quantized, case), case)


def test_graphs_that_do_not_match_are_told_with_the_node(text: Case, image: Case) -> None:
    quantized, _ = models(text)
    _, other = models(image)
    with pytest.raises(ConfigError, match=r"node /bert.* \(Gather\) .* is not in the fp32 model"):
        find_groups(quantized, other)
