from __future__ import annotations

import re
from pathlib import Path

from optimize_outcomes import SEARCH, came_too_late, certified, outcome, standing

from edgewright.optimize.outcome import Outcome
from edgewright.optimize.report import optimize_report


def _page(run: Outcome) -> str:
    return optimize_report(run, "d" * 64).decode()


def _passed(folder: Path) -> Outcome:
    name = "onnxruntime-int8"
    return outcome(
        folder,
        standing(name, 2.5, certified(1), wrong=2),
        standing("onnxruntime-other", 1.2, wrong=1),
        shipped=(name,),
        chosen=name,
    )


def test_the_verdict_comes_first_in_plain_words(tmp_path: Path) -> None:
    page = _page(_passed(tmp_path))
    body = page[page.index("<body>") :]
    assert body.index("PASS: onnxruntime-int8 ships") < body.index("<table")
    assert "On 600 rows that nothing else has seen it lost 1" in body
    assert "wrong in at most 3 of 100 cases" in body


def test_a_rejection_says_why_and_how_many_rows_are_needed(tmp_path: Path) -> None:
    given = certified(0, n=100)
    page = _page(outcome(tmp_path, standing("onnxruntime-int8", 2.5, given)))
    assert "INCONCLUSIVE: nothing ships" in page
    assert f"{given.needed_n} certify rows would pass" in page


def test_what_ships_unproven_is_said_to(tmp_path: Path) -> None:
    name = "onnxruntime-int8"
    run = outcome(tmp_path, standing(name, 2.5, certified(0, n=100)), shipped=(name,), chosen=name)
    page = _page(run)
    assert "INCONCLUSIVE: onnxruntime-int8 ships" in page
    assert "Not proven, and shipped because --allow-inconclusive was given" in page


def test_examples_whose_label_changed_are_shown_and_escaped(tmp_path: Path) -> None:
    page = _page(_passed(tmp_path))
    assert "2 of 40 search rows" in page
    assert "search text number 1 &lt;b&gt;&amp;" in page
    assert "search text number 2 " not in page
    assert SEARCH[0] not in page


def test_what_was_not_tried_has_no_bound(tmp_path: Path) -> None:
    page = _page(_passed(tmp_path))
    row = re.search(r"<td[^>]*>onnxruntime-other</td>.*?</tr>", page, re.DOTALL)
    assert row is not None
    assert "not tried" in row.group()
    assert "points" not in row.group()


def test_skipped_combinations_have_their_reason(tmp_path: Path) -> None:
    assert "openvino is not installed" in _page(_passed(tmp_path))


def test_every_candidate_is_in_the_plot(tmp_path: Path) -> None:
    page = _page(_passed(tmp_path))
    svg = page[page.index("<svg") : page.index("</svg>")]
    for name in ("onnxruntime-fp32", "onnxruntime-int8", "onnxruntime-other", "the model itself"):
        assert name in svg


def test_a_used_up_split_bounds_nothing_in_the_report(tmp_path: Path) -> None:
    page = _page(outcome(tmp_path, standing("onnxruntime-int8", 2.5, came_too_late())))
    assert "REUSED: nothing ships" in page
    assert "100.00 points" not in page


def test_a_run_without_a_faster_candidate_has_a_report(tmp_path: Path) -> None:
    page = _page(outcome(tmp_path, standing("onnxruntime-int8", 0.9)))
    assert "Nothing to ship: nothing is faster" in page
