"""Latency: workloads are read and written, and samples are summed up."""

from __future__ import annotations

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
    inputs_from_rows,
    mean_ratio_interval,
    median_interval,
    median_ranks,
    student_quantile,
    summarise,
)
from edgewright.preprocess import TextPreprocessor, TextSettings

shapes = st.builds(Shape, st.integers(1, 512), st.integers(1, 4096))
weights = st.floats(1e-6, 1e6, exclude_min=True)
workloads = st.lists(
    st.tuples(shapes, weights), min_size=1, max_size=6, unique_by=lambda pair: pair[0]
).map(lambda pairs: Workload(tuple(pairs)))


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


def samples(**seconds: list[float]):
    """One process that timed 1x8 round by round."""
    return {name: {Shape(1, 8): np.array(values)} for name, values in seconds.items()}


WORKLOAD = Workload.parse("1x8")


class TestSummarise:
    def test_times_are_medians_and_the_ratio_is_that_of_the_same_round(self) -> None:
        one = samples(fp32=[0.1, 0.2, 0.4], int8=[0.05, 0.1, 0.2])
        timings = summarise([one, one, one], "fp32", WORKLOAD, 0.95)
        assert list(timings) == ["fp32", "int8"]
        assert timings["fp32"].p50_ms == {"1x8": pytest.approx(200)}
        int8 = timings["int8"]
        assert (int8.ratio, int8.ratio_low, int8.ratio_high) == pytest.approx((2, 2, 2))
        assert int8.ratios == pytest.approx((2, 2, 2))
        assert timings["fp32"].ratio == timings["fp32"].ratio_low == timings["fp32"].ratio_high == 1

    def test_shapes_count_by_their_share(self) -> None:
        workload = Workload.parse("1x8:0.75,8x8:0.25")
        one = {
            "fp32": {Shape(1, 8): np.full(3, 0.004), Shape(8, 8): np.full(3, 0.1)},
            "int8": {Shape(1, 8): np.full(3, 0.004), Shape(8, 8): np.full(3, 0.02)},
        }
        int8 = summarise([one] * 3, "fp32", workload, 0.95)["int8"]
        assert int8.workload_ms == pytest.approx(0.75 * 4 + 0.25 * 20)
        assert int8.ratio == pytest.approx((0.75 * 4 + 0.25 * 100) / (0.75 * 4 + 0.25 * 20))

    def test_what_differs_between_processes_widens_the_interval_and_rounds_do_not_narrow_it(
        self,
    ) -> None:
        def timing(rounds: int):
            processes = [
                samples(fp32=[0.1] * rounds, int8=[0.1 / ratio] * rounds) for ratio in (1.9, 2, 2.1)
            ]
            return summarise(processes, "fp32", WORKLOAD, 0.95)["int8"]

        few, many = timing(3), timing(300)
        assert few.ratio == pytest.approx((1.9 * 2 * 2.1) ** (1 / 3))
        assert few.ratio_low == pytest.approx(many.ratio_low)
        assert few.ratio_low == pytest.approx(1.7647, abs=1e-3)
        assert few.ratio_high == pytest.approx(2.2629, abs=1e-3)

    def test_a_disturbed_round_moves_neither_median_nor_ratio(self) -> None:
        one = samples(fp32=[0.2] * 5, int8=[0.1, 0.1, 5.0, 0.1, 0.1])
        int8 = summarise([one] * 3, "fp32", WORKLOAD, 0.95)["int8"]
        assert int8.ratio == pytest.approx(2)
        assert int8.p50_ms["1x8"] == pytest.approx(100)

    def test_models_of_other_processes_are_compared_with_the_baseline_of_their_own(self) -> None:
        slow = samples(fp32=[0.4] * 3, a=[0.2] * 3)
        fast = samples(fp32=[0.1] * 3, b=[0.05] * 3)
        timings = summarise([slow, fast] * 3, "fp32", WORKLOAD, 0.95)
        assert timings["a"].ratio == pytest.approx(2)
        assert timings["b"].ratio == pytest.approx(2)
        assert timings["fp32"].latencies["1x8"].calls == 18

    @pytest.mark.parametrize(
        ("calls", "p95", "p99"), [(57, False, False), (60, True, False), (300, True, True)]
    )
    def test_percentiles_are_told_only_where_the_calls_allow(self, calls, p95, p99) -> None:
        one = samples(a=[0.1] * (calls // 3))
        latency: Latency = summarise([one] * 3, "a", WORKLOAD, 0.95)["a"].latencies["1x8"]
        assert (latency.p95_ms is not None, latency.p99_ms is not None) == (p95, p99)
        assert latency.p95_ms in (None, pytest.approx(100))

    def test_a_percentile_is_no_smaller_than_its_share_of_the_calls(self) -> None:
        one = samples(a=list(np.arange(1, 101) / 1000))
        latency = summarise([one] * 3, "a", WORKLOAD, 0.95)["a"].latencies["1x8"]
        assert (latency.p95_ms, latency.p99_ms) == (95, 99)

    def test_json_has_every_restart(self) -> None:
        processes = [samples(fp32=[0.1], int8=[0.1 / ratio]) for ratio in (1, 2, 3)]
        told = summarise(processes, "fp32", WORKLOAD, 0.95)["int8"].to_json()
        assert told["speedup_by_restart"] == pytest.approx([1, 2, 3])
        assert told["p95_ms"] == {"1x8": None}
        assert told["calls"] == {"1x8": 3}


class TestStudent:
    @given(st.integers(1, 60), st.floats(0.5, 0.9999))
    def test_quantiles_are_those_of_scipy(self, degrees: int, probability: float) -> None:
        from scipy import stats

        expected = stats.t.ppf(probability, degrees)
        assert student_quantile(probability, degrees) == pytest.approx(expected, rel=1e-6, abs=1e-9)

    def test_interval_covers_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)
        draws = np.exp(rng.normal(0.7, 0.05, size=(4000, 3)))
        intervals = [mean_ratio_interval(ratios, 0.9) for ratios in draws]
        covered = np.mean([low <= np.exp(0.7) <= high for _, low, high in intervals])
        assert 0.88 <= covered <= 0.92


def test_impossible_effort_is_refused_with_every_fault() -> None:
    with pytest.raises(ConfigError) as caught:
        Effort(budget_s=0, restarts=2, min_rounds=5, max_rounds=4, confidence=1)
    assert len(caught.value.faults) == 4


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
        "import sys, edgewright.latency_process\n"
        "heavy = {'torch', 'scipy', 'transformers', 'onnxruntime', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
