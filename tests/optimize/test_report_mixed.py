"""What a reader is told of a search, from outcomes that are given."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from edgewright.optimize.fewest import Ending, Fewest
from edgewright.optimize.mixed_precision import Mixed
from edgewright.optimize.report.mixed import mixed_line, mixed_section
from edgewright.optimize.sensitivity import Ranking, Sensitivity
from edgewright.optimize.variants import Candidate
from edgewright.proof.certificate import PairedCounts
from edgewright.report import DataTable, Figure, Paragraph

GROUPS = ("layer.1/output <b>", "layer.0: query, key, value", "classifier", "pooler")
DIVERGENCES = (math.inf, 0.3, 2e-7, 0.0)
CANDIDATE = Candidate("onnxruntime-int8-static-mixed", "onnxruntime", Path("m.onnx"), "m", True)


def searched(outcomes: dict[int, bool], k: int | None, ending: Ending = Ending.FOUND) -> Mixed:
    groups = tuple(map(Sensitivity, GROUPS, DIVERGENCES))
    return Mixed(
        failing="onnxruntime-int8-static",
        candidate=CANDIDATE if k is not None else None,
        ranking=Ranking(groups, rows=32),
        search=Fewest(k, ending, outcomes, n=len(groups)),
        counts={each: PairedCounts(n=90, lost=9 - each, won=1) for each in outcomes},
        seconds=12.25,
    )


def paragraphs(mixed: Mixed) -> str:
    blocks = mixed_section(mixed).blocks
    return " ".join(block.text for block in blocks if isinstance(block, Paragraph))


def test_the_groups_that_went_back_are_named_and_the_search_is_told() -> None:
    mixed = searched({1: False, 2: True, 3: True}, k=2)
    section = mixed_section(mixed)
    assert section.title == "Layers back in float: onnxruntime-int8-static"
    told = paragraphs(mixed)
    assert "Back in float: layer.1/output <b>; layer.0: query, key, value." in told
    assert "With 2 the loss is small enough, with 1 it is not, and with 3 it still is." in told
    (table,) = [block for block in section.blocks if isinstance(block, DataTable)]
    assert table.rows == [
        ["1", "8 lost and 1 won", "no"],
        ["2", "7 lost and 1 won", "yes"],
        ["3", "6 lost and 1 won", "yes"],
    ]


def test_every_group_has_a_bar_and_those_that_went_back_a_mark() -> None:
    section = mixed_section(searched({1: False, 2: True}, k=2))
    (figure,) = [block for block in section.blocks if isinstance(block, Figure)]
    assert "layer.1/output &lt;b&gt; *" in figure.svg
    assert "layer.0: query, key, value *" in figure.svg
    assert "classifier<" in figure.svg
    assert "pooler<" in figure.svg
    assert "mean over 32 calibrate rows" in figure.caption


def test_a_long_ranking_shows_its_head_and_says_how_many_are_left_out() -> None:
    groups = tuple(Sensitivity(f"group number {place}.", 1.0 / (place + 1)) for place in range(60))
    mixed = replace(searched({1: True}, k=1), ranking=Ranking(groups, rows=8))
    (figure,) = [block for block in mixed_section(mixed).blocks if isinstance(block, Figure)]
    assert "group number 23." in figure.svg
    assert "group number 24." not in figure.svg
    assert "36 less sensitive ones are not shown" in figure.caption


@pytest.mark.parametrize(
    ("mixed", "told"),
    [
        (searched({1: True, 2: False}, k=1), "With more it was seen to fail again"),
        (searched({1: False, 2: False, 4: True}, k=4, ending=Ending.OUT_OF_TIME), "3 was not tri"),
        (searched({1: False}, k=None, ending=Ending.OUT_OF_TIME), "--mixed-seconds"),
        (searched({1: False}, k=None, ending=Ending.NONE_PASSES), "every layer group in float"),
        (searched({1: False}, k=None, ending=Ending.OUT_OF_EVALUATIONS), "trials that are allowed"),
        (
            replace(searched({}, k=None), ranking=Ranking((), 0), search=None),
            "could not be ranked in the time",
        ),
    ],
)
def test_a_search_that_is_not_whole_says_so(mixed: Mixed, told: str) -> None:
    assert told in paragraphs(mixed)


def test_json_and_the_line_name_the_candidate_and_its_float_groups() -> None:
    mixed = searched({1: False, 2: True, 3: True}, k=2)
    assert mixed.to_json() == {
        "failing": "onnxruntime-int8-static",
        "candidate": "onnxruntime-int8-static-mixed",
        "float_groups": ["layer.1/output <b>", "layer.0: query, key, value"],
        "groups": 4,
        "sensitivity": [
            {"group": "layer.1/output <b>", "divergence": None},
            {"group": "layer.0: query, key, value", "divergence": 0.3},
            {"group": "classifier", "divergence": 2e-7},
            {"group": "pooler", "divergence": 0.0},
        ],
        "ending": "found",
        "verified": True,
        "evaluations": 3,
        "seconds": 12.25,
    }
    assert mixed_line(mixed) == (
        "onnxruntime-int8-static-mixed keeps 2 of 4 layer groups in float: layer.1/output <b>; "
        "layer.0: query, key, value"
    )
    failed = searched({1: False}, k=None, ending=Ending.NONE_PASSES)
    assert failed.to_json()["candidate"] is None
    assert "did not repair it" in mixed_line(failed)
