"""Dead tokens on small graphs: where the token that is read is pushed up, and where it must not be.

Each graph has one attention block over x of (rows, length, 8), without heads, and is compared with
itself before the pass on several shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgewright.optimize.passes.dead_tokens import drop_dead_tokens
from edgewright.optimize.passes.shapes import dims, forget_shapes, infer_shapes

WIDTH = 8
WEIGHTS = ("wq", "wk", "wv", "wo", "wf", "wc")
BLOCK = """
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    kt = Transpose <perm = [0, 2, 1]> (k)
    v = MatMul (x, wv)
    scores = MatMul (q, kt)
    masked = Add (scores, mask)
    shares = Softmax <axis = -1> (masked)
    mixed = MatMul (shares, v)
    o = MatMul (mixed, wo)
    residual = Add (o, x)
    f = MatMul (residual, wf)
    g = Relu (f)
    h = Add (g, residual)
"""
READ_FIRST = """
    first = Constant <value_int = 0> ()
    pooled = Gather <axis = 1> (h, first)
    logits = MatMul (pooled, wc)
"""


def graph(
    tail: str,
    *,
    outputs: str = "float[rows, 8] logits",
    inputs: str = "float[rows, length, 8] x, float[rows, length, length] mask",
    block: str = BLOCK,
    opset: int = 18,
) -> ir.Model:
    text = f"""
        <ir_version: 9, opset_import: ["" : {opset}]>
        block ({inputs}) => ({outputs}) {{ {block} {tail} }}
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    model.graph.initializer.extend(
        numpy_helper.from_array(rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 2, name)
        for name in WEIGHTS
    )
    onnx.checker.check_model(model)
    return ir.from_proto(model)


def feed(model: ir.Model, rows: int, length: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(rows * 100 + length)
    sizes = {"rows": rows, "length": length}
    arrays = {}
    for value in model.graph.inputs:
        shape = [size if isinstance(size, int) else sizes[str(size)] for size in value.shape]
        integer = value.dtype == ir.DataType.INT64
        arrays[value.name] = (
            rng.integers(0, min(length, 2), shape)
            if integer
            else rng.normal(size=shape).astype(np.float32)
        )
    return arrays


def answers(model: ir.Model, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, arrays), strict=True))


def assert_same(before: ir.Model, after: ir.Model) -> None:
    for rows, length in ((1, 1), (1, 6), (3, 5), (4, 2)):
        arrays = feed(before, rows, length)
        expected, found = answers(before, arrays), answers(after, arrays)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=name)


def dropped(model: ir.Model) -> tuple[ir.Model, dict[str, int | str]]:
    """The model after the pass, and of each product of the block how many rows it has by text."""
    before = model.clone()
    assert drop_dead_tokens(model) is None
    forget_shapes(model)
    assert_same(before, model)
    infer_shapes(model)
    lengths = {}
    for node in model.graph:
        shape = dims(node.outputs[0])
        if node.op_type == "MatMul" and shape is not None and len(shape) == 3:
            lengths[node.outputs[0].name or ""] = shape[1]
    return model, lengths


def assert_untouched(model: ir.Model, reason: str) -> None:
    before = written(model)
    assert drop_dead_tokens(model) == reason
    assert written(model) == before


def written(model: ir.Model) -> list[tuple[str, list[str | None]]]:
    """Every node but constants, with the names of its inputs."""
    return [
        (node.op_type, [value.name for value in node.inputs if value is not None])
        for node in model.graph
        if node.op_type != "Constant"
    ]


ONE_TOKEN = {"q": 1, "k": "length", "v": "length", "scores": 1, "mixed": 1, "o": 1, "f": 1}


def test_one_token_goes_through_query_attention_and_feed_forward() -> None:
    _, lengths = dropped(graph(READ_FIRST))
    assert lengths == ONE_TOKEN


@pytest.mark.parametrize("place", [-1, 0])
def test_the_last_token_is_read_from_the_end(place: int) -> None:
    _, lengths = dropped(graph(READ_FIRST.replace("= 0", f"= {place}")))
    assert lengths == ONE_TOKEN


@pytest.mark.parametrize(("start", "end"), [(0, 1), (-1, 2**63 - 1)])
def test_a_slice_of_one_token_counts_as_well(start: int, end: int) -> None:
    tail = f"""
        start = Constant <value_ints = [{start}]> ()
        end = Constant <value_ints = [{end}]> ()
        one = Constant <value_ints = [1]> ()
        kept = Slice (h, start, end, one)
        pooled = Squeeze (kept, one)
        logits = MatMul (pooled, wc)
    """
    _, lengths = dropped(graph(tail))
    assert lengths == ONE_TOKEN


def test_a_slice_that_is_an_output_keeps_its_name() -> None:
    tail = """
        start = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        logits = Slice (h, start, one, one)
    """
    _, lengths = dropped(graph(tail, outputs="float[rows, 1, 8] logits"))
    assert lengths == ONE_TOKEN


def test_a_pooled_token_may_have_two_readers() -> None:
    tail = f"{READ_FIRST} second = Relu (pooled)"
    _, lengths = dropped(graph(tail, outputs="float[rows, 8] logits, float[rows, 8] second"))
    assert lengths == ONE_TOKEN


@pytest.mark.parametrize(("place", "tokens"), [(0, 1), (-1, 2)])
def test_two_gathers_share_what_they_read(place: int, tokens: int) -> None:
    tail = f"""
        {READ_FIRST}
        place = Constant <value_int = {place}> ()
        second = Gather <axis = 1> (h, place)
    """
    model = graph(tail, outputs="float[rows, 8] logits, float[rows, 8] second")
    _, lengths = dropped(model)
    assert lengths == {name: size if size != 1 else tokens for name, size in ONE_TOKEN.items()}


def test_a_mask_without_rows_for_queries_is_read_whole() -> None:
    inputs = "float[rows, length, 8] x, float[rows, 1, length] mask"
    model, lengths = dropped(graph(READ_FIRST, inputs=inputs))
    assert lengths == ONE_TOKEN
    assert [node.inputs[0].name for node in model.graph if node.op_type == "Gather"] == ["x", "h"]


def test_heads_are_split_and_joined_for_the_token_alone() -> None:
    heads = """
        split = Constant <value_ints = [0, 0, 2, 4]> ()
        join = Constant <value_ints = [0, 0, 8]> ()
        q = MatMul (x, wq)
        qs = Reshape (q, split)
        qh = Transpose <perm = [0, 2, 1, 3]> (qs)
        k = MatMul (x, wk)
        ks = Reshape (k, split)
        kh = Transpose <perm = [0, 2, 3, 1]> (ks)
        scores = MatMul (qh, kh)
        shares = Softmax <axis = -1> (scores)
        vh = Transpose <perm = [0, 2, 1, 3]> (ks)
        mixed = MatMul (shares, vh)
        back = Transpose <perm = [0, 2, 1, 3]> (mixed)
        joined = Reshape (back, join)
        o = MatMul (joined, wo)
        h = Add (o, x)
    """
    _, lengths = dropped(graph(READ_FIRST, inputs="float[rows, length, 8] x", block=heads))
    assert lengths == {"q": 1, "k": "length", "o": 1}


@pytest.mark.parametrize(
    ("norm", "opset"),
    [
        ("n = LayerNormalization <axis = -1> (h, scale, shift)", 18),
        (
            """two = Constant <value_float = 2.0> ()
            mean = ReduceMean <axes = [-1]> (h)
            d = Sub (h, mean)
            p = Pow (d, two)
            var = ReduceMean <axes = [-1]> (p)
            root = Sqrt (var)
            e = Div (d, root)
            s = Mul (e, scale)
            n = Add (s, shift)""",
            14,
        ),
    ],
)
def test_normalisation_of_each_token_is_row_wise(norm: str, opset: int) -> None:
    constants = """
        scale = Constant <value_floats = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0]> ()
        shift = Constant <value_floats = [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0]> ()
    """
    tail = f"{constants} {norm} {READ_FIRST.replace('(h,', '(n,')}"
    _, lengths = dropped(graph(tail, opset=opset))
    assert lengths == ONE_TOKEN


def test_an_output_that_taps_the_block_keeps_all_its_tokens() -> None:
    outputs = "float[rows, 8] logits, float[rows, length, 8] residual"
    _, lengths = dropped(graph(READ_FIRST, outputs=outputs))
    assert lengths == {**dict.fromkeys(ONE_TOKEN, "length"), "f": 1}


def test_a_branch_that_reads_the_block_keeps_all_its_tokens() -> None:
    tail = f"""
        {READ_FIRST}
        whole = If (flag) <
            then_branch = then () => (float[rows, length, 8] a) {{ a = Relu (residual) }},
            else_branch = else () => (float[rows, length, 8] b) {{ b = Neg (residual) }}
        >
        sum = ReduceSum <keepdims = 0> (whole)
    """
    inputs = "float[rows, length, 8] x, float[rows, length, length] mask, bool flag"
    model = graph(tail, inputs=inputs, outputs="float[rows, 8] logits, float sum")
    before = model.clone()
    assert drop_dead_tokens(model) is None
    forget_shapes(model)
    arrays = {**feed(before, 2, 3), "flag": np.array(True)}
    for name, value in answers(before, arrays).items():
        np.testing.assert_allclose(answers(model, arrays)[name], value, atol=1e-4)


def test_a_second_time_there_is_nothing_left() -> None:
    model, _ = dropped(graph(READ_FIRST))
    forget_shapes(model)
    assert_untouched(model, "no output reads a fixed token of a sequence")


def test_the_mean_of_all_tokens_has_no_dead_ones() -> None:
    tail = "pooled = ReduceMean <axes = [1], keepdims = 0> (h) logits = MatMul (pooled, wc)"
    assert_untouched(graph(tail, opset=17), "no output reads a fixed token of a sequence")


def test_a_token_that_the_input_chooses_is_not_known_here() -> None:
    tail = """
        pooled = Gather <axis = 1> (h, place)
        logits = MatMul (pooled, wc)
    """
    inputs = "float[rows, length, 8] x, float[rows, length, length] mask, int64 place"
    assert_untouched(graph(tail, inputs=inputs), "no output reads a fixed token of a sequence")


def test_an_index_that_depends_on_the_batch_is_not_fixed() -> None:
    tail = """
        shape = Shape (x)
        second = Constant <value_int = 1> ()
        one = Constant <value_int = 1> ()
        length = Gather (shape, second)
        last = Sub (length, one)
        pooled = Gather <axis = 1> (h, last)
        logits = MatMul (pooled, wc)
    """
    assert_untouched(graph(tail), "no output reads a fixed token of a sequence")


def test_a_softmax_over_the_tokens_mixes_them() -> None:
    block = "p = MatMul (x, wf) s = Softmax <axis = 1> (p) h = Add (s, x)"
    model = graph(READ_FIRST, inputs="float[rows, length, 8] x", block=block)
    assert_untouched(model, "every product is needed for all tokens")


def test_tokens_that_are_all_read_are_left_in_place() -> None:
    tail = f"{READ_FIRST} whole = Relu (h)"
    outputs = "float[rows, 8] logits, float[rows, length, 8] whole"
    assert_untouched(graph(tail, outputs=outputs), "every product is needed for all tokens")


def test_an_opset_in_which_softmax_means_something_else_is_refused() -> None:
    assert_untouched(graph(READ_FIRST, opset=12), "opset 12: it reads 13 and later")
