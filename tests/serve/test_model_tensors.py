"""Arrays that a caller has preprocessed become the rows that preprocessing would have made."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgewright.errors import InputError
from edgewright.preprocess import TextPreprocessor
from edgewright.serve.model_tensors import array_types, rows_of

from .bundles import preprocessor

TEXTS = ["bank shares", "team wins the match"]


def model(**settings: Any) -> Any:
    plain = preprocessor()
    names = ("input_ids", "attention_mask", "token_type_ids")
    made = plain.with_settings(replace(plain.settings, input_names=names, **settings))
    return SimpleNamespace(preprocessor=made)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_taken_off_on_the_models_own_side(side: str) -> None:
    served = model(padding_side=side)
    made: TextPreprocessor = served.preprocessor
    arrays = made(TEXTS).arrays
    assert set(arrays) == {each.name for each in array_types(served)}
    for given in (arrays, {name: a for name, a in arrays.items() if name != "token_type_ids"}):
        rows = rows_of(served, given)
        for row, expected in zip(rows, made.encode(TEXTS), strict=True):
            np.testing.assert_array_equal(row.input_ids, expected.input_ids)  # type: ignore[attr-defined]
            np.testing.assert_array_equal(row.token_type_ids, expected.token_type_ids)  # type: ignore[attr-defined]
    other = model(padding_side={"left": "right", "right": "left"}[side])
    with pytest.raises(InputError, match="attention_mask' has a row 0"):
        rows_of(other, arrays)


def test_token_types_that_no_single_text_has_are_refused() -> None:
    arrays = model().preprocessor(TEXTS).arrays
    with pytest.raises(InputError, match=r"'token_type_ids' holds 1 at \[0, 0\]; 0 to 0 is"):
        rows_of(model(), {**arrays, "token_type_ids": np.ones_like(arrays["input_ids"])})
