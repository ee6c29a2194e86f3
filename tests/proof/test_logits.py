"""What a session is asked, and in which order its answers come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from serve.bundles import preprocessor, random_texts

from edgewright.backends import TensorSpec
from edgewright.preprocess import TokenRow
from edgewright.proof.logits import answers, predict_logits


class Echo:
    """A session whose logits are each row's first two tokens; notes what it was given."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        ids = arrays["input_ids"]
        self.shapes.append(ids.shape)
        return {"logits": np.stack([ids[:, 1], ids[:, 0]], axis=1).astype(np.float32)}


def encode(*texts: str) -> list[TokenRow]:
    return preprocessor().encode(list(texts))


@pytest.mark.parametrize("one_row_at_a_time", [False, True])
def test_answers_keep_the_order_of_the_rows(one_row_at_a_time: bool) -> None:
    rows = encode(*random_texts(35))
    logits = predict_logits(Echo(), preprocessor(), rows, one_row_at_a_time=one_row_at_a_time)
    assert logits[:, 0].tolist() == [row.input_ids[1] for row in rows]


def test_rows_of_a_length_share_batches_of_sixteen() -> None:
    session = Echo()
    predict_logits(session, preprocessor(), encode(*(["bank law", "the " * 10] * 16)))
    assert session.shapes == [(16, 4), (16, 12)]


def test_alone_means_unpadded_and_alone() -> None:
    session = Echo()
    rows = encode("bank law", "the " * 10)
    predict_logits(session, preprocessor(), rows, one_row_at_a_time=True)
    assert session.shapes == [(1, 4), (1, 12)]


def test_a_row_with_what_is_no_number_has_no_answer() -> None:
    logits = np.array([[0, 1], [np.nan, np.nan], [2, 1], [0, np.nan], [np.inf, 0]], np.float32)
    assert answers(logits).tolist() == [1, -1, 0, -1, -1]
