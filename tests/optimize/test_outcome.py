from __future__ import annotations

import json
from pathlib import Path

import pytest
from optimize_outcomes import came_too_late, certified, outcome, standing

from edgewright.bundle import Verdict
from edgewright.errors import AccuracyGateError, GateInconclusiveError
from edgewright.optimize.outcome_json import outcome_json


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
