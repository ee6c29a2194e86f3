"""The passes that write down what an exporter computes at every call, on small graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgewright.errors import ConfigError
from edgewright.optimize.passes.fold_constants import fold_constants
from edgewright.optimize.passes.shapes import dims, fix_sizes, forget_shapes, infer_shapes
from edgewright.optimize.passes.spelling import respell

X = "float[rows, length, 8] x"


def graph(
    body: str,
    outputs: str,
    inputs: str = X,
    opset: int = 18,
    values: str = "",
    **constants: NDArray[Any],
) -> ir.Model:
    noted = f"<{values}>" if values else ""
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : {opset}]>
        small ({inputs}) => ({outputs}) {noted} {{ {body} }}"""
    )
    model.graph.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in constants.items()
    )
    return ir.from_proto(model)


def rewritten(model: ir.Model, rewrite: Callable[[ir.Model], object]) -> Counter[str]:
    """Operators after the pass; the answers are as before on several shapes."""
    before = model.clone()
    rewrite(model)
    forget_shapes(model)
    sessions = [
        onnxruntime.InferenceSession(ir.to_proto(each).SerializeToString())
        for each in (before, model)
    ]
    for rows, length in ((1, 1), (1, 5), (3, 4), (2, 1)):
        arrays = {value.name: feed(value, rows, length) for value in before.graph.inputs}
        expected, found = (session.run(None, arrays) for session in sessions)
        for first, second in zip(expected, found, strict=True):
            np.testing.assert_allclose(second, first, rtol=1e-6, atol=1e-6)
    return Counter(node.op_type for node in model.graph)


def feed(value: ir.Value, rows: int, length: int) -> NDArray[Any]:
    sizes = {"rows": rows, "length": length}
    rng = np.random.default_rng(rows * 100 + length)
    assert value.shape is not None
    shape = [size if isinstance(size, int) else sizes[str(size)] for size in value.shape]
    if value.dtype == ir.DataType.INT64:
        return rng.integers(0, 8, shape)
    return rng.normal(size=shape).astype(np.float32)


def target(model: ir.Model) -> list[int]:
    reshape = next(node for node in model.graph if node.op_type == "Reshape")
    value = reshape.inputs[1]
    assert value is not None
    assert value.const_value is not None
    return list(value.const_value.numpy())


HEADS = """
    shape = Shape (x)
    zero = Constant <value_int = 0> ()
    rows = Gather (shape, zero)
    axis = Constant <value_ints = [0]> ()
    first = Unsqueeze (rows, axis)
    rest = Constant <value_ints = [-1, 2, 4]> ()
    sizes = Concat <axis = 0> (first, rest)
    y = Reshape <allowzero = 1> (x, sizes)
"""


@pytest.mark.parametrize("opset", [14, 18])
def test_a_reshape_copies_what_varies(opset: int) -> None:
    model = graph(HEADS, "float[rows, length, 2, 4] y", opset=opset)
    assert rewritten(model, fix_sizes) == {"Reshape": 1}
    assert target(model) == [0, 0, 2, 4]


def test_one_axis_that_is_nowhere_at_its_place_is_deduced() -> None:
    body = """
        moved = Transpose <perm = [1, 0, 2]> (x)
        shape = Shape (x)
        start = Constant <value_ints = [1]> ()
        two = Constant <value_ints = [2]> ()
        length = Slice (shape, start, two)
        last = Constant <value_ints = [-1]> ()
        sizes = Concat <axis = 0> (length, last)
        y = Reshape (moved, sizes)
    """
    model = graph(body, "float[length, width] y")
    rewritten(model, fix_sizes)
    assert target(model) == [0, -1]


def test_a_reshape_that_no_constant_can_tell_stays_computed() -> None:
    body = """
        shape = Shape (x)
        zero = Constant <value_ints = [0]> ()
        two = Constant <value_ints = [2]> ()
        varying = Slice (shape, zero, two)
        doubled = Mul (varying, two)
        sizes = Concat <axis = 0> (doubled, two)
        y = Reshape (x, sizes)
    """
    model = graph(body, "float[r, l, 2] y")
    assert rewritten(model, fix_sizes)["Mul"] == 1


def test_a_size_that_varies_is_read_from_the_input_once() -> None:
    body = """
        r = Relu (x)
        ashape = Shape (r)
        one = Constant <value_int = 1> ()
        length = Gather (ashape, one)
        zero = Constant <value_int = 0> ()
        places = Range (zero, length, one)
        n = Neg (r)
        bshape = Shape (n)
        filler = ConstantOfShape (bshape)
        y = Add (n, filler)
    """
    model = graph(body, "int64[length] places, float[rows, length, 8] y")
    assert rewritten(model, fix_sizes)["Shape"] == 1
    reader = next(node for node in model.graph if node.op_type == "Shape")
    assert reader.inputs[0] is model.graph.inputs[0]


def test_numbers_that_were_turned_round_in_a_table_stay_computed() -> None:
    """As torch.onnx pads the words of MobileBERT: the inference lost the Transpose on its way."""
    body = """
        others = ConstantOfShape <value = int64[1] {0}> (two)
        joined = Concat <axis = 0> (last, others)
        pairs = Reshape (joined, in_pairs)
        backwards = Slice (pairs, end, start, axis, step)
        turned = Transpose <perm = [1, 0]> (backwards)
        row = Reshape (turned, step)
        pads = Cast <to = 7> (row)
        y = Pad (x, pads)
    """
    constants = {
        "two": [2], "last": [0, 0, 0, 1], "in_pairs": [-1, 2],
        "end": [-1], "start": [-(2**63) + 1], "axis": [0], "step": [-1],
    }  # fmt: skip
    arrays = {name: np.array(values, np.int64) for name, values in constants.items()}
    assert rewritten(graph(body, "float[r, l, 8] y", **arrays), fix_sizes)["Pad"] == 1


def test_a_size_that_is_an_output_stays_one() -> None:
    body = "r = Relu (x) sizes = Shape (r) y = Expand (r, sizes)"
    model = graph(body, "float[rows, length, 8] y, int64[3] sizes")
    rewritten(model, fix_sizes)
    assert [value.name for value in model.graph.outputs] == ["y", "sizes"]


def test_a_scale_from_the_width_is_folded_but_none_from_the_length() -> None:
    body = """
        shape = Shape (x)
        two = Constant <value_int = 2> ()
        width = Gather (shape, two)
        fwidth = Cast <to = 1> (width)
        scale = Sqrt (fwidth)
        s = Div (x, scale)
        one = Constant <value_int = 1> ()
        length = Gather (shape, one)
        flength = Cast <to = 1> (length)
        y = Div (s, flength)
    """

    def both(model: ir.Model) -> None:
        fix_sizes(model)
        fold_constants(model)

    model = graph(body, "float[rows, length, 8] y")
    assert rewritten(model, both) == {"Shape": 1, "Gather": 1, "Cast": 1, "Div": 2}


@pytest.mark.parametrize("rewrite", [fix_sizes, fold_constants])
def test_what_a_file_says_of_shapes_inside_is_not_believed(
    rewrite: Callable[[ir.Model], None],
) -> None:
    """As traced with one row of five tokens; ONNX Runtime itself would believe it."""
    body = "r = Relu (x) shape = Shape (r) z = ConstantOfShape (shape) y = Add (r, z)"
    lie = "float[1, 5, 8] r, int64[3] shape"
    model = graph(body, "float[rows, length, 8] y", values=lie)
    rewrite(model)
    forget_shapes(model)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    x = np.ones((3, 2, 8), np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x)


def test_axes_without_names_are_not_taken_for_equal() -> None:
    inputs = "float[N, 8] x, float[M, 8] z"
    body = """
        shape = Shape (x)
        zeros = ConstantOfShape (shape)
        y = Add (z, zeros)
    """
    model = graph(body, "float[M, 8] y", inputs)
    for value in model.graph.inputs:
        value.shape = ir.Shape([None, 8])
    with pytest.raises(ConfigError, match="would have to be guessed"):
        fix_sizes(model)


def test_shapes_are_told_without_names_too() -> None:
    model = graph("y = Relu (x)", "float[rows, length, 8] y")
    model.graph.inputs[0].shape = ir.Shape([None, None, 8])
    model.graph.outputs[0].shape = None
    infer_shapes(model)
    assert dims(model.graph.inputs[0]) is None


def test_equal_computations_are_joined_and_constants_folded() -> None:
    body = """
        two = Constant <value_float = 2.0> ()
        root = Sqrt (two)
        a = Mul (x, root)
        b = Mul (x, root)
        y = Add (a, b)
    """
    model = graph(body, "float[rows, length, 8] y")
    assert rewritten(model, fold_constants) == {"Mul": 1, "Add": 1}


def test_rows_of_a_table_are_not_stored_as_a_second_one() -> None:
    rng = np.random.default_rng(0)
    body = "taken = Gather (table, ids) y = MatMul (x, taken)"
    model = graph(
        body,
        "float[rows, length, 4000] y",
        table=rng.normal(size=(8, 4000)).astype(np.float32),
        ids=np.arange(8),
    )
    assert rewritten(model, fold_constants) == {"Gather": 1, "MatMul": 1}
    assert set(model.graph.initializers) == {"table", "ids"}


def gelu(tail: str) -> ir.Model:
    body = f"""
        root = Constant <value_float = 1.4142135> ()
        one = Constant <value_float = 1.0> ()
        half = Constant <value_float = 0.5> ()
        d = Div (x, root)
        e = Erf (d)
        p = Add (e, one)
        {tail}
    """
    return graph(body, "float[rows, length, 8] y")


@pytest.mark.parametrize(
    "tail", ["h = Mul (half, p) y = Mul (x, h)", "h = Mul (p, half) y = Mul (h, x)"]
)
def test_gelu_is_spelt_as_onnxruntime_fuses_it(tail: str, tmp_path: Any) -> None:
    model = gelu(tail)
    fold_constants(model)
    rewritten(model, respell)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    assert [node.op_type for node in optimised.node] == ["Gelu"]


@pytest.mark.parametrize(
    "tail",
    [
        "h = Mul (half, p) g = Mul (x, h) y = Add (g, h)",  # read twice
        "h = Mul (root, p) y = Mul (x, h)",  # no half
        "h = Mul (p, p) y = Mul (x, h)",
        "y = Mul (half, p)",
    ],
)
def test_what_only_looks_like_gelu_stays(tail: str) -> None:
    model = gelu(tail)
    fold_constants(model)
    before = ir.to_proto(model).graph.node
    rewritten(model, respell)
    assert ir.to_proto(model).graph.node == before


KEYS = """
    flat = Constant <value_ints = [-1, 4, 2]> ()
    split = Constant <value_ints = [0, 0, 4, 2]> ()
    back = Constant <value_ints = [{back}]> ()
    k = Reshape (x, split)
    f = Reshape (k, flat)
    t = Transpose <perm = [{perm}]> (f)
    y = Reshape (t, back)
"""


def keys(perm: str, back: str) -> ir.Model:
    """Of five rows with three heads, four tokens and two numbers a token."""
    body = KEYS.format(perm=perm, back=f"-1, {back}")
    return graph(body, f"float[5, {back}] y", "float[5, 3, 8] x")


def test_keys_are_transposed_at_once() -> None:
    model = keys("0, 2, 1", "3, 2, 4")
    assert rewritten(model, respell) == {"Reshape": 1, "Transpose": 1}
    turn = next(node for node in model.graph if node.op_type == "Transpose")
    assert turn.attributes.get_ints("perm") == (0, 1, 3, 2)


@pytest.mark.parametrize(("perm", "back"), [("0, 2, 1", "3, 4, 2"), ("1, 0, 2", "3, 2, 4")])
def test_another_way_through_three_axes_stays(perm: str, back: str) -> None:
    assert rewritten(keys(perm, back), respell) == {"Reshape": 3, "Transpose": 1}
