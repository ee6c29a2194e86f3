from __future__ import annotations

from dataclasses import replace

import pytest

from edgewright.bundle import Certificate, Verdict
from edgewright.optimize.choice import Aim, Contender, Rules, choose, rank, shippable, shortlist
from edgewright.proof.certificate import PairedCounts, Subject, reused

RULES = Rules(budget=0.015, confidence=0.95, certify_n=600)


def _contender(
    name: str, speedup: float, lost: int = 0, *, backend: str = "onnxruntime", size: int = 10
) -> Contender:
    return Contender(
        name=name,
        backend=backend,
        size_bytes=size,
        search=PairedCounts(n=100, lost=lost, won=0),
        speedup=speedup,
        speedup_low=speedup * 0.97,
        speedup_high=speedup * 1.03,
    )


def _openvino(name: str, speedup: float, lost: int = 0) -> Contender:
    return _contender(name, speedup, lost, backend="openvino")


FP32 = _contender("onnxruntime-fp32", 1.0, size=90)
SPEED = Aim(FP32)


def _names(contenders: list[Contender]) -> list[str]:
    return [each.name for each in contenders]


def test_the_fastest_are_ranked_first() -> None:
    assert _names(
        rank([_contender("a", 1.5), _contender("b", 3.0), _contender("c", 2.0)], 0.015)
    ) == [
        "b",
        "c",
        "a",
    ]


def test_what_exceeds_the_budget_on_search_comes_after_what_does_not() -> None:
    assert _names(rank([_contender("fast", 3.0, lost=2), _contender("slow", 1.5)], 0.015)) == [
        "slow",
        "fast",
    ]


def test_speeds_within_a_step_count_as_equal_and_losses_decide() -> None:
    noisy = [_contender("a", 3.05, lost=1), _contender("b", 2.95), _contender("c", 2.0)]
    assert _names(rank(noisy, 0.015)) == ["b", "a", "c"]


def test_noise_in_the_measurement_leaves_the_order_alone() -> None:
    first = [_contender("a", 3.05, size=5), _contender("b", 2.95), _contender("c", 2.0)]
    second = [_contender("a", 2.93, size=5), _contender("b", 3.02), _contender("c", 2.1)]
    assert _names(rank(first, 0.015)) == _names(rank(second, 0.015)) == ["a", "b", "c"]


def test_a_shortlist_holds_three() -> None:
    contenders = [
        _contender(name, speed) for name, speed in zip("abcd", (1.5, 2, 3, 4), strict=True)
    ]
    assert _names(shortlist(contenders, SPEED, RULES)) == ["d", "c", "b"]


def test_what_is_not_faster_than_fp32_beyond_the_noise_is_left_out() -> None:
    assert shortlist([_contender("a", 1.02)], SPEED, RULES) == []


def test_a_few_percent_are_worth_a_trial_only_where_nothing_else_is() -> None:
    barely = _contender("barely", 1.06)
    assert _names(shortlist([barely, _contender("clearly", 2.0)], SPEED, RULES)) == ["clearly"]
    assert _names(shortlist([barely], SPEED, RULES)) == ["barely"]


def test_what_search_proves_to_lose_too_much_takes_no_slot_from_others() -> None:
    contenders = [_contender("broken", 5.0, lost=30), _contender("sound", 2.0)]
    assert _names(shortlist(contenders, SPEED, RULES)) == ["sound"]


def test_with_nothing_better_the_broken_one_gets_its_verdict() -> None:
    contenders = [_contender("broken", 5.0, lost=30), _contender("worse", 4.0, lost=40)]
    assert _names(shortlist(contenders, SPEED, RULES)) == ["broken"]


def test_openvino_alone_brings_fp32_on_onnx_runtime_along() -> None:
    contenders = [_openvino(name, speed) for name, speed in zip("abc", (2, 3, 4), strict=True)]
    assert _names(shortlist(contenders, SPEED, RULES)) == ["c", "b", "onnxruntime-fp32"]
    assert _names(shortlist(contenders[:1], SPEED, RULES)) == ["a", "onnxruntime-fp32"]


def test_a_likely_variant_on_onnx_runtime_is_preferred_to_fp32() -> None:
    contenders = [_openvino(name, speed) for name, speed in zip("abc", (2, 3, 4), strict=True)]
    contenders.append(_contender("int8", 1.5))
    assert _names(shortlist(contenders, SPEED, RULES)) == ["c", "b", "int8"]


def test_an_unlikely_variant_on_onnx_runtime_does_not_replace_fp32() -> None:
    contenders = [_openvino("a", 4), _openvino("b", 3), _contender("int8", 2.0, lost=1)]
    assert not RULES.is_likely(contenders[-1])
    assert _names(shortlist(contenders, SPEED, RULES)) == ["a", "b", "onnxruntime-fp32"]


def test_files_in_the_ledger_keep_their_place() -> None:
    contenders = [
        _contender(name, speed) for name, speed in zip("abcd", (1.5, 2, 3, 4), strict=True)
    ]
    assert _names(shortlist(contenders, SPEED, RULES, tried={"a"}, free_slots=2)) == ["a", "d", "c"]


def test_with_two_trials_left_the_servable_one_gets_the_second() -> None:
    contenders = [_openvino(name, speed) for name, speed in zip("abc", (2, 3, 4), strict=True)]
    names = _names(shortlist(contenders, SPEED, RULES, free_slots=2))
    assert names == ["c", "onnxruntime-fp32", "b"]


def _certificates(**verdicts: Verdict) -> dict[str, Certificate]:
    subject = Subject("f" * 64, "onnxruntime 1", "x86_64-amx", row_by_row=False)
    blank = reused(subject, budget=0.015, threads=1, split_sha256="c" * 64)
    return {name: replace(blank, verdict=verdict) for name, verdict in verdicts.items()}


FROZEN = [_contender("a", 3.0), _contender("b", 3.2), _contender("c", 1.0)]


def _shipped(
    frozen: list[Contender] = FROZEN, *, allow: bool = False, **verdicts: Verdict
) -> list[str]:
    certificates = _certificates(**verdicts)
    return _names(shippable(frozen, certificates, SPEED, allow_inconclusive=allow))


def test_all_that_passed_ships_and_the_fastest_is_chosen() -> None:
    assert _shipped(a=Verdict.PASS, b=Verdict.PASS, c=Verdict.PASS) == ["b", "a", "c"]
    assert choose([FROZEN[1], FROZEN[0], FROZEN[2]], SPEED).name == "b"


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.REUSED])
def test_what_did_not_pass_does_not_ship(verdict: Verdict) -> None:
    assert _shipped(a=Verdict.PASS, b=verdict, c=Verdict.PASS) == ["a", "c"]


@pytest.mark.parametrize("allow", [False, True])
def test_a_pass_that_is_no_faster_than_fp32_ships_nothing(allow: bool) -> None:
    verdicts = {"a": Verdict.FAIL, "b": Verdict.REUSED, "c": Verdict.PASS}
    assert _shipped(allow=allow, **verdicts) == []


def test_an_inconclusive_one_ships_only_when_allowed_and_nothing_better_is_there() -> None:
    undecided = {"a": Verdict.INCONCLUSIVE, "b": Verdict.REUSED, "c": Verdict.PASS}
    assert _shipped(**undecided) == []
    assert _shipped(allow=True, **undecided) == ["c", "a"]
    assert choose([FROZEN[2], FROZEN[0]], SPEED).name == "a"
    assert _shipped(allow=True, a=Verdict.PASS, b=Verdict.INCONCLUSIVE, c=Verdict.PASS) == [
        "a",
        "c",
    ]


def test_a_pass_on_openvino_alone_makes_no_bundle() -> None:
    frozen = [_openvino("a", 3.0), _contender("b", 1.0)]
    assert _shipped(frozen, a=Verdict.PASS, b=Verdict.INCONCLUSIVE) == []
    assert _shipped(frozen, a=Verdict.PASS, b=Verdict.PASS) == ["a", "b"]
    assert _shipped(frozen, allow=True, a=Verdict.PASS, b=Verdict.INCONCLUSIVE) == ["a", "b"]


SMALL, LARGE = 23_000, 59_000
BASELINE = Aim(_contender("onnxruntime-fp32", 1.0, size=91_000), prefer="size")


def test_where_size_is_preferred_the_smallest_is_first_and_chosen() -> None:
    contenders = [
        _contender("fast", 3.0, size=LARGE),
        _contender("small", 1.3, size=SMALL),
        _contender("middle", 2.0, size=40_000),
    ]
    frozen = shortlist(contenders, BASELINE, RULES)
    assert _names(frozen) == ["small", "middle", "fast"]
    verdicts = _certificates(fast=Verdict.PASS, small=Verdict.PASS, middle=Verdict.PASS)
    shipped = shippable(frozen, verdicts, BASELINE, allow_inconclusive=False)
    assert choose(shipped, BASELINE).name == "small"
    verdicts = _certificates(fast=Verdict.PASS, small=Verdict.FAIL, middle=Verdict.PASS)
    shipped = shippable(frozen, verdicts, BASELINE, allow_inconclusive=False)
    assert choose(shipped, BASELINE).name == "middle"


def test_of_equally_small_files_the_faster_is_first() -> None:
    contenders = [
        _contender("a", 1.5, size=SMALL),
        _contender("b", 3.0, size=round(SMALL * 1.01)),
        _contender("c", 4.0, size=LARGE),
    ]
    assert _names(rank(contenders, 0.015, "size")) == ["b", "a", "c"]
    assert _names(BASELINE.best_first(contenders)) == ["b", "a", "c"]
    assert _names(rank(contenders, 0.015)) == ["c", "b", "a"]


def test_a_small_file_that_is_slower_than_fp32_is_no_gain() -> None:
    assert shortlist([_contender("small", 0.9, size=SMALL)], BASELINE, RULES) == []


def test_a_small_file_as_fast_as_fp32_is_a_gain_in_size_alone() -> None:
    even = _contender("even", 1.01, size=SMALL)
    assert BASELINE.is_gain(even)
    assert not Aim(BASELINE.baseline).is_gain(even)


def test_what_is_as_large_as_fp32_is_no_gain_in_size() -> None:
    assert not BASELINE.is_gain(BASELINE.baseline)
    same_file = _contender("openvino-fp32", 2.0, backend="openvino", size=91_000)
    assert shortlist([same_file], BASELINE, RULES) == []
    passed = _certificates(**{"openvino-fp32": Verdict.PASS})
    assert shippable([same_file], passed, BASELINE, allow_inconclusive=False) == []


def test_a_small_file_on_openvino_brings_one_for_onnx_runtime_along() -> None:
    small = _contender("ov", 2.0, backend="openvino", size=SMALL)
    names = _names(shortlist([small, _contender("ort", 1.2, size=LARGE)], BASELINE, RULES))
    assert names == ["ov", "ort"]
