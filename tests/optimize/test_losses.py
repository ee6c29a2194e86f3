from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from optimize_outcomes import image_examples, outcome, search_examples, standing

from edgewright.optimize.losses import Loss, loss_by_class, loss_by_length
from edgewright.optimize.outcome import Outcome


def _run(folder: Path, **changes: object) -> Outcome:
    return outcome(folder, standing("onnxruntime-int8", 2.0, wrong=3), **changes)


def test_every_class_has_its_rows_lost_and_won(tmp_path: Path) -> None:
    reference = search_examples().labels.copy()
    reference[[0, 5]] = 1 - reference[[0, 5]]  # the model errs on one row of each class
    run = _run(tmp_path, reference=reference)
    assert loss_by_class(run, run.standings[1]) == [
        Loss("business", n=20, model_right=19, right=18, lost=1, won=0),
        Loss("sport", n=20, model_right=19, right=19, lost=1, won=1),
    ]


def test_a_class_without_rows_loses_nothing(tmp_path: Path) -> None:
    search = replace(search_examples(), label_names=("business", "sport", "tech"))
    run = _run(tmp_path, search=search)
    empty = loss_by_class(run, run.standings[1])[2]
    assert (empty.group, empty.n, empty.lost) == ("tech", 0, 0)
    assert np.isnan(empty.share)


def test_thirds_by_length_hold_every_row_and_the_loss_of_theirs(tmp_path: Path) -> None:
    texts = ["x" * (1 + place) for place in range(40)]  # rows 0, 1 and 2 are lost: the shortest
    run = _run(tmp_path, search=replace(search_examples(), contents=texts))
    thirds = loss_by_length(run, run.standings[1])
    assert [each.group for each in thirds] == [
        "short, 1 to 14 characters",
        "medium, 15 to 27 characters",
        "long, 28 to 40 characters",
    ]
    assert [each.n for each in thirds] == [14, 13, 13]
    assert [each.lost for each in thirds] == [3, 0, 0]
    assert thirds[0].share == 3 / 14


def test_texts_of_one_length_stay_together(tmp_path: Path) -> None:
    run = _run(
        tmp_path, search=replace(search_examples(), contents=["four"] * 30 + ["longer"] * 10)
    )
    assert [(each.group, each.n) for each in loss_by_length(run, run.standings[1])] == [
        ("short, 4 to 4 characters", 30),
        ("long, 6 to 6 characters", 10),
    ]
    alike = _run(tmp_path, search=replace(search_examples(), contents=["four"] * 40))
    assert loss_by_length(alike, alike.standings[1]) == []


def test_images_have_no_length(tmp_path: Path) -> None:
    run = _run(tmp_path, search=image_examples(tmp_path))
    assert loss_by_length(run, run.standings[1]) == []
