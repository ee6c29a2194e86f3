"""Latency: workloads are read and written, and models are timed fairly, by a clock of our own."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.errors import ConfigError
from edgewright.latency import (
    Effort,
    Latency,
    Shape,
    Workload,
    compare,
    inputs_from_rows,
    median_interval,
    median_ranks,
)
from edgewright.preprocess import TextPreprocessor, TextSettings

shapes = st.builds(Shape, st.integers(1, 512), st.integers(1, 4096))
weights = st.floats(1e-6, 1e6, exclude_min=True)
workloads = st.lists(
    st.tuples(shapes, weights), min_size=1, max_size=6, unique_by=lambda pair: pair[0]
).map(lambda pairs: Workload(tuple(pairs)))


class Machine:
    """A clock, and models that take the time that is set for them on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self.seen: list[tuple[int, ...]] = []

    def clock(self) -> float:
        return self.now

    def model(self, name: str, seconds):
        """``seconds`` is a function of the input's shape."""

        def run(arrays) -> None:
            shape = arrays["input_ids"].shape
            self.order.append(name)
            self.seen.append(shape)
            self.now += seconds(*shape)

        return run


def make_inputs(shape: Shape, index: int):
    return {"input_ids": np.full((shape.rows, shape.length), index)}


class TestWorkload:
    @given(workloads)
    def test_what_is_written_is_read_back(self, workload: Workload) -> None:
        assert Workload.parse(str(workload)) == workload

    @given(workloads)
    def test_shares_sum_to_one_and_keep_the_proportions(self, workload: Workload) -> None:
        shares = workload.shares
        assert math.isclose(sum(shares.values()), 1)
        (first, weight), *others = workload.weights
        for shape, other in others:
            assert math.isclose(shares[shape] / shares[first], other / weight, rel_tol=1e-9)

    def test_weights_may_be_left_out_and_spaces_are_allowed(self) -> None:
        assert Workload.parse(" 1x32, 8x128 ").shares == {Shape(1, 32): 0.5, Shape(8, 128): 0.5}

    @pytest.mark.parametrize(
        "text",
        ["", ",", "32", "1x", "x32", "1x32:", "1x32:many", "1x32:-1", "1x32:0", "1x32:inf"]
        + ["1x32:nan", "0x32", "1x0", "-1x32", "1x32x2", "1.5x32", "1x32,1x32:2", "1x32;8x128"],
    )
    def test_what_cannot_be_timed_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="workload"):
            Workload.parse(text)

    def test_every_fault_is_told_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Workload.parse("1x,8x128:0.5,two")
        assert len(caught.value.faults) == 2
        assert "'1x'" in str(caught.value)
        assert "'two'" in str(caught.value)

    @given(st.text(max_size=30))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        try:
            workload = Workload.parse(text)
        except ConfigError:
            return
        assert Workload.parse(str(workload)) == workload

    def test_default_is_one_typical_text_and_eight_long_ones(self) -> None:
        lengths = [10] * 4 + [20] * 4 + [64, 128]
        assert str(Workload.from_lengths(lengths)) == "1x20:0.5,8x64:0.5"

    def test_default_needs_texts(self) -> None:
        with pytest.raises(ConfigError, match="no texts"):
            Workload.from_lengths([])


class TestMedianInterval:
    @pytest.mark.parametrize(
        ("n", "ranks"),
        # Published two-sided 95% intervals for a median, counted from 1: n=6 takes the 1st and
        # the 6th, n=9 the 2nd and 8th, n=15 the 4th and 12th, n=20 the 6th and 15th.
        [(5, None), (6, (0, 5)), (9, (1, 7)), (15, (3, 11)), (20, (5, 14))],
    )
    def test_ranks_are_those_of_the_binomial(self, n: int, ranks) -> None:
        assert median_ranks(n, 0.95) == ranks

    @given(st.integers(1, 200), st.floats(0.5, 0.999))
    def test_coverage_is_at_least_what_is_asked_and_no_wider_than_needed(self, n, confidence):
        def miss(k: int) -> float:
            return 2 * sum(math.comb(n, below) for below in range(k)) / 2**n

        ranks = median_ranks(n, confidence)
        k = 0 if ranks is None else ranks[0] + 1
        if ranks is not None:
            assert ranks[1] == n - k
            assert miss(k) <= 1 - confidence
        if k < n // 2:
            assert miss(k + 1) > 1 - confidence

    def test_interval_covers_the_median_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)
        draws = rng.lognormal(size=(2000, 15))  # median 1
        intervals = [median_interval(values, 0.95) for values in draws]
        covered = np.mean([low <= 1 <= high for _, low, high in intervals])
        assert 0.95 <= covered <= 0.985

    def test_too_few_values_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="5 values"):
            median_interval(np.ones(5), 0.95)


class TestCompare:
    def test_times_and_ratios_are_those_of_the_clock(self) -> None:
        machine = Machine()
        timings = compare(
            {
                "fp32": machine.model("fp32", lambda rows, length: rows * length * 1e-4),
                "int8": machine.model("int8", lambda rows, length: rows * length * 0.4e-4),
            },
            "fp32",
            Workload.parse("1x32:0.75,8x128:0.25"),
            make_inputs,
            clock=machine.clock,
        )
        assert list(timings) == ["fp32", "int8"]
        assert timings["fp32"].ratio == timings["fp32"].ratio_low == 1.0
        assert timings["fp32"].p50_ms == pytest.approx({"1x32": 3.2, "8x128": 102.4})
        assert timings["int8"].p50_ms == pytest.approx({"1x32": 1.28, "8x128": 40.96})
        assert timings["int8"].workload_ms == pytest.approx(0.75 * 1.28 + 0.25 * 40.96)
        int8 = timings["int8"]
        assert (int8.ratio, int8.ratio_low, int8.ratio_high) == pytest.approx((2.5, 2.5, 2.5))

    def test_a_machine_that_slows_down_meanwhile_does_not_move_the_ratio(self) -> None:
        machine = Machine()

        def drifting(seconds: float):
            return lambda *_: seconds * (1 + machine.now)

        runs = {
            "fp32": machine.model("fp32", drifting(0.02)),
            "int8": machine.model("int8", drifting(0.01)),
        }
        timings = compare(runs, "fp32", Workload.parse("1x32"), make_inputs, clock=machine.clock)
        assert timings["fp32"].latencies["1x32"].p50_ms > 40  # it did slow down, by far
        assert timings["int8"].ratio == pytest.approx(2, rel=0.02)

    def test_every_round_times_all_of_them_and_the_order_turns(self) -> None:
        machine = Machine()
        runs = {name: machine.model(name, lambda *_: 0.1) for name in "abc"}
        compare(
            runs,
            "a",
            Workload.parse("1x8"),
            make_inputs,
            effort=Effort(budget_s=1, min_rounds=6),
            clock=machine.clock,
        )
        rounds = "".join(machine.order)[-18:]
        assert rounds == "abccba" * 3

    def test_a_disturbed_round_does_not_move_the_median(self) -> None:
        machine = Machine()
        calls = itertools.count()
        runs = {
            "fp32": machine.model("fp32", lambda *_: 0.2),
            "int8": machine.model("int8", lambda *_: 5.0 if next(calls) == 10 else 0.1),
        }
        timing = compare(runs, "fp32", Workload.parse("1x8"), make_inputs, clock=machine.clock)[
            "int8"
        ]
        assert timing.ratio == pytest.approx(2)
        assert timing.p50_ms["1x8"] == pytest.approx(100)

    def test_a_model_that_depends_on_the_batch_is_timed_row_by_row(self) -> None:
        machine = Machine()
        timings = compare(
            {
                "fp32": machine.model("fp32", lambda rows, _: 0.01 * rows),
                "dynamic": machine.model("dynamic", lambda rows, _: 0.005),
            },
            "fp32",
            Workload.parse("8x16"),
            make_inputs,
            row_by_row={"dynamic"},
            clock=machine.clock,
        )
        by_name = dict(zip(machine.order, machine.seen, strict=True))
        assert by_name == {"fp32": (8, 16), "dynamic": (1, 16)}
        assert timings["dynamic"].p50_ms["8x16"] == pytest.approx(8 * 5)
        assert timings["dynamic"].ratio == pytest.approx(2)

    def test_cold_calls_are_not_counted(self) -> None:
        machine = Machine()
        calls = itertools.count()
        cold = machine.model("a", lambda *_: max(0.01, 0.1 - 0.02 * next(calls)))
        timing = compare({"a": cold}, "a", Workload.parse("1x8"), make_inputs, clock=machine.clock)
        latency = timing["a"].latencies["1x8"]
        assert latency.p50_ms == pytest.approx(10)
        assert latency.p90_ms == pytest.approx(10)

    def test_a_model_that_never_settles_is_measured_all_the_same(self) -> None:
        machine = Machine()
        calls = itertools.count()
        restless = machine.model("a", lambda *_: 0.1 if next(calls) % 2 else 0.3)
        timing = compare(
            {"a": restless}, "a", Workload.parse("1x8"), make_inputs, clock=machine.clock
        )
        assert timing["a"].latencies["1x8"].rounds >= Effort().min_rounds

    @pytest.mark.parametrize(
        ("call_s", "rounds"), [(1e-4, 101), (0.1, 40), (60.0, 9)], ids=["most", "some", "least"]
    )
    def test_budget_decides_the_rounds_within_limits(self, call_s: float, rounds: int) -> None:
        machine = Machine()
        runs = {name: machine.model(name, lambda *_: call_s) for name in "ab"}
        timing = compare(
            runs,
            "a",
            Workload.parse("1x8"),
            make_inputs,
            effort=Effort(budget_s=10, min_rounds=9, max_rounds=101),
            clock=machine.clock,
        )["a"]
        assert timing.latencies["1x8"].rounds == pytest.approx(rounds, abs=1)

    def test_percentiles_are_told_only_where_the_rounds_allow(self) -> None:
        def p90(rounds: int) -> float | None:
            machine = Machine()
            timing = compare(
                {"a": machine.model("a", lambda *_: 0.1)},
                "a",
                Workload.parse("1x8"),
                make_inputs,
                effort=Effort(min_rounds=rounds, max_rounds=rounds),
                clock=machine.clock,
            )
            latency: Latency = timing["a"].latencies["1x8"]
            return latency.p90_ms

        assert p90(28) is None
        assert p90(29) == pytest.approx(100)

    def test_impossible_effort_is_refused_with_every_fault(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Effort(budget_s=0, min_rounds=5, max_rounds=4, confidence=0.95)
        assert len(caught.value.faults) == 3


@pytest.fixture
def preprocessor() -> TextPreprocessor:
    """Words to ids, one token each; [PAD] is 9."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {str(number): number for number in range(9)}
    tokenizer = Tokenizer(models.WordLevel({**words, "[PAD]": 9}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ("input_ids", "attention_mask")
    settings = TextSettings(names, max_length=6, model_max_length=6, pad_token_id=9)
    return TextPreprocessor(settings, tokenizer.to_str())


def test_inputs_are_real_rows_cut_or_padded_to_the_shape(preprocessor: TextPreprocessor) -> None:
    rows = preprocessor.encode(["1", "2 3 4 5 6 7", "8 0"])
    make = inputs_from_rows(preprocessor, rows)
    first = make(Shape(2, 4), 0)
    assert first["input_ids"].tolist() == [[2, 3, 4, 5], [8, 0, 9, 9]]
    assert first["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert make(Shape(2, 4), 1)["input_ids"][0].tolist() == [1, 9, 9, 9]
    assert make(Shape(5, 3), 0)["input_ids"].shape == (5, 3)  # more rows than there are


def test_timing_needs_neither_scipy_nor_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, edgewright.latency\n"
        "heavy = {'torch', 'scipy', 'transformers', 'onnxruntime', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
