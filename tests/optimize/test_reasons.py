from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from optimize_outcomes import BUDGET, came_too_late, certified, outcome, standing

from edgewright.bundle import Against
from edgewright.optimize.config import OptimizeConfig
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.optimize.reasons import why_not

CHOSEN = standing("onnxruntime-best", 4.0, certified(0))


def _reason(folder: Path, each: Standing, **changes: object) -> str:
    run = outcome(folder, CHOSEN, each, shipped=(CHOSEN.name,), chosen=CHOSEN.name, **changes)
    return why_not(run, each)


def _searched(lost: int, n: int) -> Standing:
    each = standing("onnxruntime-x", 3.0)
    search = replace(each.contender.search, n=n, lost=lost)
    return replace(each, contender=replace(each.contender, search=search))


@pytest.mark.parametrize(
    ("each", "reason"),
    [
        (standing("onnxruntime-x", 2.0, certified(1)), "may be served too; onnxruntime-best is"),
        (standing("onnxruntime-x", 2.0, certified(90)), "loses between .* 1.50 are allowed"),
        (standing("onnxruntime-x", 2.0, certified(0, n=100)), "certify rows would pass, and there"),
        (standing("onnxruntime-x", 2.0, came_too_late()), "has been used for other files"),
        (standing("onnxruntime-x", 0.9, certified(0)), "so that ONNX Runtime alone can serve"),
        (standing("onnxruntime-x", 0.9), "slower than fp32"),
        (standing("onnxruntime-x", 1.01), "not faster than fp32 beyond the noise"),
        (standing("onnxruntime-x", 1.07), "faster by less than 10%"),
        (standing("onnxruntime-x", 2.0), "others came before it, and at most three"),
        (_searched(200, 400), "search alone shows .* 200 lost and 0 won of 400 search rows"),
        (_searched(2, 100), "others came before it, for it loses more .*: 2 lost and 0 won of 100"),
    ],
)
def test_every_candidate_that_is_not_served_has_its_reason(
    tmp_path: Path, each: Standing, reason: str
) -> None:
    assert re.search(reason, _reason(tmp_path, each))


def test_the_chosen_one_and_the_baseline_are_no_losers(tmp_path: Path) -> None:
    run: Outcome = outcome(tmp_path, CHOSEN, shipped=(CHOSEN.name,), chosen=CHOSEN.name)
    assert why_not(run, CHOSEN) == ""
    assert why_not(run, run.baseline) == "the others are held against it"


def test_a_pass_without_one_for_onnx_runtime_says_what_a_bundle_needs(tmp_path: Path) -> None:
    each = standing("openvino-x", 2.0, certified(0), backend="openvino")
    assert "a bundle needs that" in why_not(outcome(tmp_path, each), each)


@pytest.mark.parametrize(
    ("speedup", "size", "reason"),
    [(2.0, 90_000_000, "not smaller than fp32"), (0.9, 20_000_000, "slower than fp32")],
)
def test_where_size_is_preferred_the_reason_is_size(
    tmp_path: Path, speedup: float, size: int, reason: str
) -> None:
    config = OptimizeConfig(tmp_path / "a", tmp_path / "b", max_drop=BUDGET, prefer="size")
    each = standing("onnxruntime-x", speedup, size=size)
    assert _reason(tmp_path, each, config=config) == reason


def test_without_labels_rows_are_answered_otherwise_not_lost(tmp_path: Path) -> None:
    reason = _reason(tmp_path, _searched(2, 100), search_against=Against.REFERENCE)
    assert reason.endswith("2 answered otherwise of 100 search rows")
