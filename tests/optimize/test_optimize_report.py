from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from optimize_outcomes import (
    BUDGET,
    SEARCH,
    came_too_late,
    certified,
    graph_work,
    image_examples,
    outcome,
    placement,
    search_examples,
    standing,
    timing,
)

from edgewright.bundle import Against
from edgewright.optimize.config import OptimizeConfig
from edgewright.optimize.outcome import Outcome
from edgewright.optimize.report import optimize_report


def _page(run: Outcome) -> str:
    return optimize_report(run, "d" * 64).decode()


def _passed(folder: Path, **changes: Any) -> Outcome:
    name = "onnxruntime-int8"
    return outcome(
        folder,
        standing(name, 2.5, certified(1), wrong=2),
        standing("onnxruntime-other", 1.2, wrong=1),
        shipped=(name,),
        chosen=name,
        **changes,
    )


def _section(page: str, title: str) -> str:
    found = re.search(rf"<section>\n<h2>{title}</h2>.*?</section>", page, re.DOTALL)
    assert found is not None, title
    return found.group()


def _rows(html: str) -> list[list[str]]:
    """Cells of every row of a table's body."""
    rows = re.findall(r"<tr[^>]*>(<td.*?)</tr>", html, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


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
    assert str(tmp_path) not in page


def test_what_ships_unproven_is_said_to(tmp_path: Path) -> None:
    name = "onnxruntime-int8"
    run = outcome(tmp_path, standing(name, 2.5, certified(0, n=100)), shipped=(name,), chosen=name)
    page = _page(run)
    assert "INCONCLUSIVE: onnxruntime-int8 ships" in page
    assert "Not proven, and shipped because <span" in page
    assert ">--allow-inconclusive</span> was given" in page


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


def test_sections_stand_in_the_order_in_which_a_reader_asks(tmp_path: Path) -> None:
    run = _passed(
        tmp_path,
        graph_work=graph_work(),
        placements={"onnxruntime-int8": placement(integer=9, in_float=3)},
    )
    assert re.findall("<h2>(.*?)</h2>", _page(run)) == [
        "Candidates",
        "What runs",
        "Where the speed comes from",
        "Where it loses",
        "Examples whose label changed",
        "Coverage of int8",
        "What rows buy",
        "Host and run",
    ]


def test_every_candidate_has_its_ratio_verdict_and_why_it_is_not_served(tmp_path: Path) -> None:
    rows = _rows(_section(_page(_passed(tmp_path)), "Candidates"))
    assert [(row[0], row[1], *row[3:]) for row in rows[:3]] == [
        ("onnxruntime-fp32", "1.00 (0.97–1.03)", "baseline", "the others are held against it"),
        ("onnxruntime-int8", "2.50 (2.42–2.58)", "PASS", "it is served"),
        (
            "onnxruntime-other",
            "1.20 (1.16–1.24)",
            "not tried",
            "others came before it, for it loses more on search than is allowed: "
            "1 lost and 0 won of 40 search rows",
        ),
    ]


def test_the_frontier_is_joined_and_told(tmp_path: Path) -> None:
    section = _section(_page(_passed(tmp_path)), "Candidates")
    assert ">frontier<" in section
    assert "joins those that no other beats" in section
    best = standing("onnxruntime-int8", 2.5, certified(0))
    alone = _section(_page(outcome(tmp_path, best)), "Candidates")
    assert ">frontier<" not in alone
    assert "No other is faster or better than onnxruntime-int8." in alone


def test_the_gain_is_split_and_every_pass_says_what_it_did(tmp_path: Path) -> None:
    graph = standing("onnxruntime-fp32-graph", 1.25)
    int8 = standing("onnxruntime-int8", 2.5, certified(0))
    run = outcome(tmp_path, graph, int8, graph_work=graph_work(), gains={"fix-sizes": timing(1.2)})
    assert _rows(_section(_page(run), "Where the speed comes from")) == [
        ["graph work", "onnxruntime-fp32-graph", "1.25 (1.21–1.29)"],
        ["int8", "onnxruntime-int8", "2.00 (2.00–2.00)"],
        ["all together", "onnxruntime-int8", "2.50 (2.42–2.58)"],
        [
            "fix-sizes",
            "96 → 22",
            "60 Constant, 9 Shape, 3 Cast, 3 Concat, and of 1 more kind",
            "2.4e-07",
            "1.20 (1.16–1.24)",
        ],
        ["respell", "22", "left out: nothing to do &lt;i&gt;", "–", "–"],
    ]


def test_losses_by_class_and_by_length_are_those_of_the_foremost(tmp_path: Path) -> None:
    texts = ["x" * (1 + place) for place in range(40)]
    run = _passed(tmp_path, search=replace(search_examples(), contents=texts))
    section = _section(_page(run), "Where it loses")
    rows = _rows(section)
    assert ["business", "20", "20", "19", "1", "0", "5.00"] in rows
    assert ["sport", "20", "20", "19", "1", "0", "5.00"] in rows
    assert ["short, 1 to 14 characters", "14", "14", "12", "2", "0", "14.29"] in rows
    assert ["long, 28 to 40 characters", "13", "13", "13", "0", "0", "0.00"] in rows
    assert "onnxruntime-int8 on the 40 rows of the search split" in section


def test_of_many_classes_those_that_lose_most_are_shown(tmp_path: Path) -> None:
    names = ("business", "sport", *(f"class {place}" for place in range(40)))
    run = _passed(tmp_path, search=replace(search_examples(), label_names=names))
    section = _section(_page(run), "Where it loses")
    assert "the 30 of 42 that lose most" in section
    assert [row[0] for row in _rows(section)[:2]] == ["business", "sport"]
    assert "prediction" not in section.replace("predictions", "")


def test_coverage_counts_products_and_names_those_in_float(tmp_path: Path) -> None:
    placements = {
        "onnxruntime-fp32": placement(integer=0, in_float=12),
        "onnxruntime-int8": placement(integer=9, in_float=3),
    }
    rows = _rows(_section(_page(_passed(tmp_path, placements=placements)), "Coverage of int8"))
    assert rows == [
        ["onnxruntime-int8", "12", "9", "75%", "3 MatMul in fp32"],
        ["/layer.*/scores", "3", "MatMul", "fp32"],
    ]


def test_images_are_shown_as_thumbnails_by_their_escaped_name(tmp_path: Path) -> None:
    page = _page(_passed(tmp_path, search=image_examples(tmp_path)))
    section = _section(page, "Examples whose label changed")
    assert section.count('<img src="data:image/png;base64,') == 2
    assert "&lt;i&gt;picture 0.png" in section
    assert "rows x pixels of height" in page
    assert "characters" not in _section(page, "Where it loses")


def test_a_changed_row_says_whether_it_was_lost(tmp_path: Path) -> None:
    reference = search_examples().labels.copy()
    reference[[1, 9]] = 1 - reference[[1, 9]]
    section = _section(
        _page(_passed(tmp_path, reference=reference)), "Examples whose label changed"
    )
    cells = re.findall(r'class="cells">(.*?)</p>', section)
    assert [re.findall("<b>(.*?)</b>", each) for each in cells] == [
        ["business", "business", "sport (0.90)", "lost"],
        ["sport", "business", "sport (0.90)", "won"],
    ]
    assert "2 of 40 search rows, those that were lost first" in section


def test_long_texts_are_cut(tmp_path: Path) -> None:
    texts = ["word " * 400] * 40
    run = _passed(tmp_path, search=replace(search_examples(), contents=texts))
    assert len(_section(_page(run), "Examples whose label changed")) < 1800


def test_raw_examples_are_left_out_on_demand(tmp_path: Path) -> None:
    config = OptimizeConfig(
        tmp_path / "checkpoint", tmp_path / "bundle", max_drop=BUDGET, no_raw_examples=True
    )
    assert "search text number" not in _page(_passed(tmp_path, config=config))


def test_without_labels_nothing_is_called_accuracy(tmp_path: Path) -> None:
    name = "onnxruntime-int8"
    given = certified(1, against=Against.REFERENCE)
    run = outcome(
        tmp_path,
        standing(name, 2.5, given, wrong=2),
        standing("onnxruntime-other", 2.0, certified(40, against=Against.REFERENCE)),
        shipped=(name,),
        chosen=name,
        against=Against.REFERENCE,
        search_against=Against.REFERENCE,
        graph_work=graph_work(),
    )
    page = _page(run)
    assert "On 600 rows without labels that nothing else has seen it answered 1 otherwise" in page
    told = page.replace("It cannot lose more accuracy than that.", "")
    assert "ccuracy" not in told[told.index("<body>") :]
    assert "points" not in _section(page, "Where it loses")
    assert "agreement on search" in page
    assert "the model itself" not in page
    assert ["business", "20", "1", "5.00"] in _rows(_section(page, "Where it loses"))
    assert "model \\ prediction" in page
    assert "label: <b>" not in page
    assert "answers between" in page


def test_texts_of_the_run_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    search = replace(search_examples(), contents=[evil] * 40, label_names=(evil, "b"))
    run = _passed(tmp_path, search=search, skipped=((evil, evil),), workload=evil)
    run = replace(run, made_from={evil: evil}, host=replace(run.host, cpu=evil))
    page = _page(run)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 8


def test_the_same_outcome_gives_the_same_page(tmp_path: Path) -> None:
    assert _page(_passed(tmp_path)) == _page(_passed(tmp_path))
