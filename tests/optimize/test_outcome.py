from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from optimize_outcomes import (
    came_too_late,
    certified,
    graph_work,
    outcome,
    search_examples,
    standing,
    timing,
)

from edgewright.bundle import Against, Verdict
from edgewright.errors import AccuracyGateError, GateInconclusiveError
from edgewright.optimize.outcome_json import measurements_json, outcome_json


def test_json_holds_what_the_command_line_promises(tmp_path: Path) -> None:
    run = outcome(
        tmp_path,
        standing("onnxruntime-int8", 2.5, certified(1)),
        shipped=("onnxruntime-int8",),
        chosen="onnxruntime-int8",
    )
    told = json.loads(json.dumps(outcome_json(run), allow_nan=False))
    assert told["variant"] == "onnxruntime-int8"
    assert (told["backend"], told["verdict"], told["certify_n"]) == ("onnxruntime", "PASS", 600)
    assert 0 < told["loss_upper_bound"] <= 0.015
    assert told["needed_n"] is None
    assert told["speedup"] == 2.5
    assert told["speedup_interval"] == pytest.approx([2.425, 2.575])
    assert told["size_ratio"] == 0.25
    assert told["seconds"] == 3.75
    assert told["published"] is True
    assert [each["name"] for each in told["candidates"]] == ["onnxruntime-fp32", "onnxruntime-int8"]
    assert told["candidates"][1]["certificate"]["lost"] == 1


def test_a_rejection_is_told_of_the_one_that_came_closest(tmp_path: Path) -> None:
    run = outcome(
        tmp_path,
        standing("onnxruntime-a", 3.0, certified(90)),
        standing("onnxruntime-b", 2.0, certified(0, n=100)),
        standing("onnxruntime-c", 1.5, certified(1, n=100)),
    )
    told = outcome_json(run)
    assert (told["variant"], told["verdict"]) == ("onnxruntime-b", "INCONCLUSIVE")
    assert told["needed_n"] > 100
    assert told["published"] is False
    assert told["folder"].endswith("bundle.rejected")


def test_a_fail_alone_is_an_accuracy_gate_error_that_names_the_loss(tmp_path: Path) -> None:
    run = outcome(tmp_path, standing("onnxruntime-a", 3.0, certified(90)))
    error = run.refusal()
    assert isinstance(error, AccuracyGateError)
    assert "onnxruntime-a loses between" in str(error)
    assert "1.50 are allowed" in str(error)
    assert str(run.config.rejected) in str(error)


@pytest.mark.parametrize("undecided", [certified(0, n=100), came_too_late()])
def test_one_that_is_undecided_makes_the_run_inconclusive(tmp_path: Path, undecided) -> None:
    run = outcome(
        tmp_path,
        standing("onnxruntime-a", 3.0, certified(90)),
        standing("onnxruntime-b", 2.0, undecided),
    )
    assert isinstance(run.refusal(), GateInconclusiveError)


def test_too_few_rows_are_told_with_the_number_that_would_do(tmp_path: Path) -> None:
    given = certified(0, n=100)
    error = outcome(tmp_path, standing("onnxruntime-a", 3.0, given)).refusal()
    assert f"{given.needed_n} certify rows would pass, and there are 100" in str(error)


def test_a_used_up_split_asks_for_fresh_rows(tmp_path: Path) -> None:
    error = outcome(tmp_path, standing("onnxruntime-a", 3.0, came_too_late())).refusal()
    assert "fresh rows" in str(error)


def test_nothing_faster_is_told_as_such(tmp_path: Path) -> None:
    run = outcome(tmp_path, standing("onnxruntime-a", 0.9))
    assert isinstance(run.refusal(), AccuracyGateError)
    assert "no candidate is faster" in str(run.refusal())
    assert outcome_json(run)["verdict"] is None


def test_a_pass_that_nothing_on_onnx_runtime_accompanies_is_explained(tmp_path: Path) -> None:
    run = outcome(
        tmp_path,
        standing("openvino-a", 3.0, certified(0), backend="openvino"),
        standing("onnxruntime-b", 2.0, certified(0, n=100)),
    )
    error = run.refusal()
    assert isinstance(error, GateInconclusiveError)
    assert "openvino-a passed, but no variant for onnxruntime did" in str(error)
    assert run.foremost is not None
    assert run.foremost.certificate is not None
    assert run.foremost.certificate.verdict is Verdict.PASS


def test_the_frontier_is_who_no_other_beats_the_fastest_first(tmp_path: Path) -> None:
    run = outcome(
        tmp_path,
        standing("slow-and-right", 1.5),
        standing("beaten", 2.0, wrong=3),
        standing("fast", 3.0, wrong=2),
        standing("fastest", 4.0, wrong=9),
        standing("as-fast-and-worse", 3.0, wrong=4),
    )
    assert [each.name for each in run.frontier] == ["fastest", "fast", "slow-and-right"]


def test_what_the_report_shows_is_in_both_json_objects(tmp_path: Path) -> None:
    run = outcome(
        tmp_path,
        standing("onnxruntime-fp32-graph", 1.2),
        standing("onnxruntime-int8", 2.4, certified(1), wrong=2),
        shipped=("onnxruntime-int8",),
        chosen="onnxruntime-int8",
        graph_work=graph_work(),
        gains={"fix-sizes": timing(1.2)},
        search=replace(search_examples(), contents=["x" * (1 + place) for place in range(40)]),
    )
    printed, measured = (
        json.loads(json.dumps(each, allow_nan=False))
        for each in (outcome_json(run), measurements_json(run))
    )
    assert printed["candidates"][2]["search_changed"] == 2
    assert measured["why_not"]["onnxruntime-int8"] == ""
    assert printed["candidates"][1]["why_not"] == measured["why_not"]["onnxruntime-fp32-graph"]
    assert measured["frontier"] == ["onnxruntime-int8", "onnxruntime-fp32-graph"]
    for told in (printed, measured):
        assert [(each["source"], each["factor"]) for each in told["gain"]] == [
            ("graph work", 1.2),
            ("int8", pytest.approx(2.0)),
        ]
        kept, left_out = told["graph_work"]
        assert kept["nodes_removed"]["Constant"] == 60
        assert kept["timing"]["speedup"] == 1.2
        assert (left_out["applied"], left_out["timing"]) == (False, None)
        assert told["losses"]["candidate"] == "onnxruntime-int8"
        assert [each["lost"] for each in told["losses"]["by_class"]] == [1, 1]
        assert sum(each["n"] for each in told["losses"]["by_length"]) == 40
        assert told["against"] == {"certify": "labels", "search": "labels"}


def test_without_labels_the_refusal_speaks_of_answers_not_of_accuracy(tmp_path: Path) -> None:
    given = certified(90, against=Against.REFERENCE)
    error = outcome(tmp_path, standing("onnxruntime-a", 3.0, given)).refusal()
    assert "answers between" in str(error)
    assert "otherwise than the model, and 1.50% are allowed" in str(error)
    assert "accuracy" not in str(error)
