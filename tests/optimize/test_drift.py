from __future__ import annotations

import numpy as np
import pytest

from edgewright.kinds import TEXT
from edgewright.optimize.drift import drift_reference

SCORES = np.array(
    [[0.9, 0.1, 0.0], [0.97, 0.02, 0.01], [0.3, 0.6, 0.1], [1.0, 0.0, 0.0]], np.float32
)


def _reference() -> dict:
    return drift_reference(
        [range(5), range(8), range(16), range(70)],
        TEXT,
        {"b": SCORES, "a": SCORES[:, ::-1]},
        ["x", "y", "z"],
    )


def test_labels_are_counted_as_the_variant_gives_them() -> None:
    variants = _reference()["variants"]
    assert variants["b"]["label_share"] == {"x": 0.75, "y": 0.25, "z": 0.0}
    assert variants["a"]["label_share"] == {"x": 0.0, "y": 0.25, "z": 0.75}


def test_top_scores_have_a_mean_and_a_histogram_that_holds_every_row() -> None:
    answers = _reference()["variants"]["b"]
    assert answers["mean_top_score"] == pytest.approx((0.9 + 0.97 + 0.6 + 1.0) / 4, abs=1e-6)
    counts = dict(
        zip(answers["top_scores"]["edges"], answers["top_scores"]["counts"], strict=False)
    )
    assert sum(answers["top_scores"]["counts"]) == 4
    assert counts[0.95] == 2


def test_token_lengths_are_counted_in_doubling_bins() -> None:
    lengths = _reference()["token_lengths"]
    assert lengths == {"edges": [0, 8, 16, 32, 64, 128], "counts": [1, 1, 1, 0, 1]}
    assert _reference()["rows"] == 4


def test_variants_are_in_the_order_of_their_names() -> None:
    assert list(_reference()["variants"]) == ["a", "b"]
