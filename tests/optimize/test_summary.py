from __future__ import annotations

from pathlib import Path

from optimize_outcomes import came_too_late, certified, outcome, standing

from edgewright.optimize.summary import summary_lines

NAME = "onnxruntime-int8"


def test_the_verdict_comes_first_and_the_report_last(tmp_path: Path) -> None:
    run = outcome(tmp_path, standing(NAME, 2.5, certified(1)), shipped=(NAME,), chosen=NAME)
    lines = list(summary_lines(run))
    assert lines[0] == "PASS  onnxruntime-int8 ships"
    assert "(1.50 allowed), shown on 600 rows with error rate 0.03" in lines[1]
    assert lines[2] == "2.50 times as fast as fp32 (2.42 to 2.58), at 0.25 of its size"
    assert lines[-1] == f"report  {tmp_path / 'bundle' / 'report.html'}"


def test_the_chosen_candidate_is_marked_in_an_even_table(tmp_path: Path) -> None:
    run = outcome(tmp_path, standing(NAME, 2.5, certified(1)), shipped=(NAME,), chosen=NAME)
    table = [line for line in summary_lines(run) if line.startswith(("candidate", "onnxruntime"))]
    assert [line.endswith("PASS *") for line in table] == [False, False, True]
    assert len({line.index(cell) for line, cell in zip(table[1:], ("1.00", "2.50"), strict=True)})


def test_a_used_up_split_is_said_to_prove_nothing(tmp_path: Path) -> None:
    lines = list(summary_lines(outcome(tmp_path, standing(NAME, 2.5, came_too_late()))))
    assert lines[0] == "REUSED  onnxruntime-int8 does not ship"
    assert "proves nothing" in lines[1]
    assert lines[-1].endswith("bundle.rejected/report.html")


def test_nothing_faster_is_said_in_one_line(tmp_path: Path) -> None:
    lines = list(summary_lines(outcome(tmp_path, standing(NAME, 0.9))))
    assert lines[0].startswith("nothing ships: no candidate is faster")
