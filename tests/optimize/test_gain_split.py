from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from optimize_outcomes import graph_work, outcome, standing

from edgewright.optimize.gain_split import GainStep, gain_steps
from edgewright.optimize.outcome import Outcome, Standing

WHOLE = (
    ("openvino-fp32", 1.1),
    ("openvino-fp32-graph", 1.3),
    ("openvino-bf16", 2.6),
    ("openvino-int8-static", 3.9),
    ("onnxruntime-fp32-graph", 1.2),
    ("onnxruntime-int8-static", 3.0),
)


def _run(folder: Path, *left_out: str, worked: bool = True) -> Outcome:
    standings = [
        standing(name, speedup, backend=name.partition("-")[0])
        for name, speedup in WHOLE
        if name not in left_out
    ]
    return outcome(folder, *standings, graph_work=graph_work() if worked else None)


def _told(steps: list[GainStep]) -> list[tuple[str, str, float]]:
    return [(each.source, each.candidate, round(each.factor, 6)) for each in steps]


def test_the_gain_is_split_into_runtime_graph_work_bf16_and_int8(tmp_path: Path) -> None:
    run = _run(tmp_path)
    shown = run.standing("openvino-int8-static")
    steps = gain_steps(run, shown)
    assert _told(steps) == [
        ("runtime", "openvino-fp32", 1.1),
        ("graph work", "openvino-fp32-graph", round(1.3 / 1.1, 6)),
        ("bf16", "openvino-bf16", 2.0),
        ("int8", "openvino-int8-static", 1.5),
    ]
    assert math.prod(each.factor for each in steps) == pytest.approx(3.9)


def test_the_baselines_own_runtime_is_no_step(tmp_path: Path) -> None:
    run = _run(tmp_path)
    assert _told(gain_steps(run, run.standing("onnxruntime-int8-static"))) == [
        ("graph work", "onnxruntime-fp32-graph", 1.2),
        ("int8", "onnxruntime-int8-static", 2.5),
    ]
    assert gain_steps(run, run.baseline) == []


def test_a_step_that_was_not_measured_goes_into_the_next_which_names_both(tmp_path: Path) -> None:
    run = _run(tmp_path, "openvino-fp32", "openvino-bf16")
    assert _told(gain_steps(run, run.standing("openvino-int8-static"))) == [
        ("runtime and graph work", "openvino-fp32-graph", 1.3),
        ("int8", "openvino-int8-static", 3.0),
    ]


def test_graph_work_that_found_nothing_is_no_step(tmp_path: Path) -> None:
    run = _run(tmp_path, "onnxruntime-fp32-graph", worked=False)
    assert _told(gain_steps(run, run.standing("onnxruntime-int8-static"))) == [
        ("int8", "onnxruntime-int8-static", 3.0)
    ]


def test_intervals_come_from_the_restarts_and_of_the_first_step_from_its_timing(
    tmp_path: Path,
) -> None:
    run = _run(tmp_path)
    first, second = gain_steps(*_restarted(run, 2.8, 3.0, 3.2))
    assert first.interval == pytest.approx((1.2 * 0.97, 1.2 * 1.03))
    assert second.interval is not None
    assert second.interval[0] < 2.5 < second.interval[1]
    assert gain_steps(*_restarted(run, 3.0))[1].interval is None


def _restarted(run: Outcome, *ratios: float) -> tuple[Outcome, Standing]:
    """The same with these ratios of the last candidate in its restarts."""
    *others, last = run.standings
    last = replace(last, timing=replace(last.timing, ratios=ratios))
    return replace(run, standings=(*others, last)), last
