"""Graph work on exports of real architectures: the same answers, less to compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from tiny_models import VOCABULARY, tiny_classifier
from tiny_vision import pictures, vision_model

from edgewright.backends import get_backend
from edgewright.errors import ConfigError, IntegrityError
from edgewright.latency import Effort, Shape, Workload
from edgewright.model_file import LOGITS
from edgewright.optimize import torch_model
from edgewright.optimize.graph_work import (
    EXACT,
    SOURCE,
    GraphWork,
    PassRecord,
    measure_passes,
    work_graph,
)
from edgewright.optimize.head_input import HeadInput
from edgewright.optimize.passes import GraphPass
from edgewright.optimize.passes.shapes import dims, infer_shapes
from edgewright.optimize.quantize import quantize_dynamic
from edgewright.optimize.quiet import quiet
from edgewright.preprocess.images import PIXEL_VALUES

Arrays = Mapping[str, NDArray[Any]]

LAYERS, LONGEST = 2, 38
TEXT = ("bert", "roberta", "electra", "distilbert", "albert", "mpnet", "deberta-v2", "modernbert")
FAMILIES = (
    *(f"{kind}/optimum" for kind in TEXT),
    *(f"{kind}/torch" for kind in ("bert", "vit", "resnet", "convnext")),
)
POOLED = tuple(each for each in FAMILIES if each.split("/")[0] not in ("resnet", "convnext"))


def text_feed(rows: int, length: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Rows of different lengths, the first of them the longest."""
    ids = np.random.default_rng(seed).integers(5, len(VOCABULARY), (rows, length))
    mask = np.ones_like(ids)
    for row in range(rows):
        mask[row, max(1, length - 3 * row) :] = 0
    return {"input_ids": np.where(mask == 1, ids, 0), "attention_mask": mask}


def feeds_for(family: str, seed: int = 0) -> list[dict[str, NDArray[Any]]]:
    if family.split("/")[0] in TEXT:
        shapes = ((1, 7), (3, 12), (1, 1), (4, LONGEST), (2, 2))
        return [text_feed(*shape, seed=seed) for shape in shapes]
    return [{PIXEL_VALUES: pictures(rows, seed).numpy()} for rows in (1, 3)]


def export(family: str, path: Path, opset: int | None = None) -> Path:
    kind, exporter = family.split("/")
    with quiet():  # DeBERTa's code scripts functions as it is imported
        model = tiny_classifier(kind, LAYERS) if kind in TEXT else vision_model(kind)
    with torch.no_grad():  # away from initial values, where biases are 0 and logits nearly so
        generator = torch.Generator().manual_seed(1)
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    arrays = text_feed(3, 9) if kind in TEXT else {PIXEL_VALUES: pictures(2).numpy()}
    with quiet():
        head = HeadInput.of(model, torch_model._tensors(arrays))
        if exporter == "torch":
            torch_model._export_with_torch(model, head, arrays, path, opset or 18)
        else:
            config = torch_model._optimum_config(model, list(arrays))
            if head is not None:
                config = torch_model._with_features(model, head, config)
            torch_model._export_with_optimum(model, config, path, opset)
    return path


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], GraphWork]:
    done: dict[str, GraphWork] = {}

    def work(family: str) -> GraphWork:
        if family not in done:
            folder = tmp_path_factory.mktemp("family")
            steps = folder / "steps"
            steps.mkdir()
            source = export(family, folder / "fp32.onnx")
            target = folder / "fp32-graph.onnx"
            done[family] = work_graph(source, target, feeds_for(family), steps=steps)
        return done[family]

    return work


def run(path: Path, arrays: Arrays) -> NDArray[Any]:
    return get_backend("onnxruntime").load(path, threads=1).run(arrays)[LOGITS]


def files(work: GraphWork) -> Iterator[Path]:
    yield from (each.path for each in work.passes if each.path is not None)
    yield work.target


def record(work: GraphWork, name: str) -> PassRecord:
    return next(each for each in work.passes if each.name == name)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_pass_answers_as_the_export_does(
    family: str, worked: Callable[[str], GraphWork]
) -> None:
    work = worked(family)
    for path in files(work):
        for arrays in feeds_for(family, seed=1):  # not those that the passes were proven on
            expected = run(work.source, arrays)
            assert expected.std() > 0.01
            np.testing.assert_allclose(run(path, arrays), expected, rtol=0, atol=EXACT)
    assert work.max_difference <= EXACT


@pytest.mark.parametrize("family", ["bert/optimum", "deberta-v2/optimum", "bert/torch"])
def test_rows_answer_alone_as_in_a_padded_batch(
    family: str, worked: Callable[[str], GraphWork]
) -> None:
    batch = text_feed(4, 17, seed=3)
    together = run(worked(family).target, batch)
    for row, length in enumerate(batch["attention_mask"].sum(axis=1)):
        alone = {name: array[row : row + 1, :length] for name, array in batch.items()}
        np.testing.assert_allclose(run(worked(family).target, alone)[0], together[row], atol=1e-5)


@pytest.mark.parametrize("family", ["bert/optimum", "mpnet/optimum", "bert/torch"])
def test_batch_and_length_stay_dynamic(family: str, worked: Callable[[str], GraphWork]) -> None:
    work = worked(family)
    before, after = ir.load(work.source).graph, ir.load(work.target).graph
    shapes = [
        [(value.name, str(value.shape)) for value in graph.inputs] for graph in (before, after)
    ]
    assert shapes[0] == shapes[1]
    source, target = (
        get_backend("onnxruntime").load(path, threads=1) for path in (work.source, work.target)
    )
    for rows, length in [*((1, each) for each in range(1, LONGEST + 1)), (2, 20), (7, 3), (16, 9)]:
        arrays = text_feed(rows, length, seed=length)
        expected = source.run(arrays)[LOGITS]
        assert expected.shape == (rows, 3)
        np.testing.assert_allclose(target.run(arrays)[LOGITS], expected, atol=EXACT)


@pytest.mark.parametrize("family", POOLED)
def test_the_last_block_runs_on_the_token_that_is_read(
    family: str, worked: Callable[[str], GraphWork]
) -> None:
    work = worked(family)
    assert record(work, "drop-dead-tokens").applied
    kind = family.split("/")[0]
    layers = LAYERS if kind in TEXT else 4
    # Query, attention's output, both of the feed-forward. ModernBERT has one product for query, key
    # and value; optimum's DeBERTa asks for the query's shape, so its query is cut after the product.
    query = 0 if family in ("modernbert/optimum", "deberta-v2/optimum") else 1
    products = Counter(narrow_products(work.target))
    assert products[True] == 3 + query
    assert products[False] >= 4 * (layers - 1)


def narrow_products(path: Path) -> Iterator[bool]:
    """Of every product of an activation with a weight, whether it has one token."""
    model = ir.load(path)
    infer_shapes(model)
    for node in model.graph:
        if node.op_type == "MatMul" and node.inputs[1].is_initializer():
            shape = dims(node.outputs[0])
            if shape is not None and len(shape) == 3 and shape[0] != 1:
                yield shape[1] == 1


@pytest.mark.parametrize("family", ["resnet/torch", "convnext/torch"])
def test_images_without_tokens_have_no_dead_ones(
    family: str, worked: Callable[[str], GraphWork]
) -> None:
    reason = record(worked(family), "drop-dead-tokens").left_out
    assert reason == "no output reads a fixed token of a sequence"


@pytest.mark.parametrize("family", [each for each in FAMILIES if each.endswith("optimum")])
def test_no_block_computes_shapes_at_every_call(
    family: str, worked: Callable[[str], GraphWork]
) -> None:
    work = worked(family)
    sizes = record(work, "fix-sizes")
    assert sum(sizes.after.values()) < 0.6 * sum(sizes.before.values())
    assert sizes.removed["Shape"] > 0
    last = record(work, "drop-dead-tokens").after
    if family != "deberta-v2/optimum":  # which has branches that ask for shapes
        assert last["Shape"] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_time_there_is_nothing_to_do(
    family: str, worked: Callable[[str], GraphWork], tmp_path: Path
) -> None:
    work = worked(family)
    again = work_graph(work.target, tmp_path / "again.onnx", feeds_for(family))
    assert not again.applied
    assert all(each.left_out for each in again.passes)
    assert again.target.read_bytes() == work.target.read_bytes()


@pytest.mark.parametrize("family", ["bert/optimum", "bert/torch"])
def test_the_same_source_gives_the_same_bytes(
    family: str, worked: Callable[[str], GraphWork], tmp_path: Path
) -> None:
    work = worked(family)
    twin = work_graph(work.source, tmp_path / "twin.onnx", feeds_for(family, seed=5))
    assert twin.target.read_bytes() == work.target.read_bytes()
    assert list(tmp_path.iterdir()) == [twin.target]


@pytest.mark.parametrize("opset", [14, 15, 17, 18, 20])
def test_every_opset_from_14_to_20_is_understood(opset: int, tmp_path: Path) -> None:
    source = export("bert/optimum", tmp_path / "fp32.onnx", opset)
    work = work_graph(source, tmp_path / "graph.onnx", feeds_for("bert/optimum"))
    assert ir.load(work.target).opset_imports[""] == opset
    assert record(work, "fix-sizes").applied
    assert record(work, "drop-dead-tokens").applied
    onnx.checker.check_model(onnx.load(work.target), full_check=True)


def test_dynamic_int8_has_every_bias_inside_its_products(
    worked: Callable[[str], GraphWork], tmp_path: Path
) -> None:
    """ONNX Runtime puts them there by itself, where no other fusion has taken them before."""
    path = tmp_path / "int8.onnx"
    quantize_dynamic(worked("bert/optimum").target, path, reduce_range=True)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    options.add_session_config_entry(
        "optimization.disable_specified_optimizers", "SkipLayerNormFusion"
    )
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    inside = {"DynamicQuantizeMatMul": 4, "MatMulIntegerToFloat": 6}
    products = [node for node in graph.node if node.op_type in inside]
    assert len(products) == 6 * LAYERS + 2
    assert all(len(node.input) > inside[node.op_type] for node in products)


def change_an_answer(model: ir.Model) -> None:
    bias = model.graph.initializers["classifier.bias"]
    bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(1e-4), name=bias.name)


def write_nonsense(model: ir.Model) -> None:
    next(node for node in model.graph if node.op_type == "Softmax").op_type = "Hardmin"


def give_up(model: ir.Model) -> None:
    raise RuntimeError("a branch\nthat it does not know")


@pytest.mark.parametrize(
    ("rewrite", "reason"),
    [
        (change_an_answer, "an output differs by 0.0001, allowed are 1e-05"),
        (write_nonsense, "ONNX Runtime refuses what it made: "),
        (give_up, "it cannot read this graph: a branch"),
        (lambda model: None, "nothing to do"),
        (lambda model: "no attention here", "no attention here"),
    ],
)
def test_a_pass_that_fails_is_left_out_and_says_why(
    rewrite: Callable[[ir.Model], str | None],
    reason: str,
    worked: Callable[[str], GraphWork],
    tmp_path: Path,
) -> None:
    source = worked("bert/optimum").target
    passes = [GraphPass("faulty", rewrite)]
    target = tmp_path / "target.onnx"
    work = work_graph(source, target, feeds_for("bert/optimum"), passes=passes)
    assert work.passes[0].left_out.startswith(reason)
    assert not work.applied
    assert work.max_difference == 0
    assert target.read_bytes() == source.read_bytes()


def test_after_a_pass_that_fails_the_others_go_on(
    worked: Callable[[str], GraphWork], tmp_path: Path
) -> None:
    from edgewright.optimize.passes import PASSES

    source = worked("bert/optimum").source
    passes = [PASSES[0], GraphPass("faulty", change_an_answer), *PASSES[1:]]
    work = work_graph(source, tmp_path / "graph.onnx", feeds_for("bert/optimum"), passes=passes)
    assert record(work, "drop-dead-tokens").applied
    assert work.target.read_bytes() == worked("bert/optimum").target.read_bytes()


def test_weights_beside_a_large_model_stay_beside_it(
    worked: Callable[[str], GraphWork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = worked("bert/optimum")
    monkeypatch.setattr("edgewright.optimize.export._LARGEST_BYTES", 1000)
    work = work_graph(whole.source, tmp_path / "graph.onnx", feeds_for("bert/optimum"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.onnx", "graph.onnx.data"]
    assert [each.after for each in work.passes] == [each.after for each in whole.passes]
    arrays = text_feed(3, 9)
    np.testing.assert_array_equal(run(work.target, arrays), run(whole.target, arrays))
    again = work_graph(work.target, tmp_path / "again.onnx", feeds_for("bert/optimum"))
    assert not again.applied


def test_without_feeds_nothing_is_proven(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one batch"):
        work_graph(tmp_path / "fp32.onnx", tmp_path / "graph.onnx", [])


def test_a_source_that_is_no_model_is_named(tmp_path: Path) -> None:
    source = tmp_path / "fp32.onnx"
    source.write_bytes(b"no model")
    with pytest.raises(IntegrityError, match="fp32.onnx"):
        work_graph(source, tmp_path / "graph.onnx", feeds_for("bert/optimum"))


def test_the_gain_of_each_pass_can_be_measured(
    worked: Callable[[str], GraphWork], tmp_path: Path
) -> None:
    def make_inputs(shape: Shape, index: int) -> Arrays:
        return text_feed(shape.rows, shape.length, seed=index)

    effort = Effort(budget_s=0.1, min_rounds=6, max_rounds=6)
    workload = Workload.parse("1x5,2x9")
    work = worked("bert/optimum")
    timings = measure_passes(work, workload, make_inputs, threads=1, effort=effort)
    assert list(timings) == [SOURCE, "fix-sizes", "fold-constants", "drop-dead-tokens"]
    assert timings[SOURCE].ratio == 1
    assert all(timing.ratio > 0 for timing in timings.values())
    forgotten = work_graph(work.source, tmp_path / "graph.onnx", feeds_for("bert/optimum"))
    with pytest.raises(ConfigError, match="were not kept"):
        measure_passes(forgotten, workload, make_inputs, threads=1, effort=effort)
