"""Models, observers and limits that stand in for real ones around the batcher."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgewright.preprocess import TokenRow
from edgewright.serve.admission import QueueLimit
from edgewright.serve.call import Answer, BatchModel, Run
from edgewright.serve.compute import Computed, best_first
from edgewright.serve.line import BatchLimit

CLASSES = 3
BATCH = BatchLimit(rows=8, tokens=4096)
QUEUE = QueueLimit(rows=1000, wait_s=60.0)


class FakeModel:
    """Scores that tell whose text it was; it can be held, and remembers what it computed.

    A text is a number, and has as many tokens as that number has in ``length_of``.
    """

    def __init__(self, name: str = "fake", *, row_by_row: bool = False, instances: int = 1) -> None:
        self.name = name
        self.row_by_row = row_by_row
        self.instances = instances
        self.runs: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def cost(self, given: str) -> int:
        return length_of(int(given)) if given.isdecimal() else 1

    def encode(self, texts: Sequence[str]) -> list[TokenRow]:
        if "bad" in texts:
            raise ValueError("a text that cannot be tokenised")
        numbers = [np.array([int(text)] * length_of(int(text)), np.int64) for text in texts]
        return [TokenRow(row, row * 0, bool(row[0] % 2)) for row in numbers]

    def scores(self, rows: Sequence[TokenRow]) -> NDArray[np.float32]:
        run = [int(row.input_ids[0]) for row in rows]
        self.runs.append(run)
        self.entered.set()
        assert self.gate.wait(60)
        return expected_scores(run)

    def scores_with(
        self, rows: Sequence[TokenRow], extras: Sequence[str]
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        scores = self.scores(rows)
        return scores, {name: scores * len(name) for name in extras}

    @property
    def computed(self) -> list[int]:
        return [number for run in self.runs for number in run]


def length_of(number: int) -> int:
    return 1 + number % 7


def expected_scores(numbers: Sequence[int]) -> NDArray[np.float32]:
    rng = [np.random.default_rng(number).random(CLASSES) for number in numbers]
    return np.array(rng, np.float32)


def expected_answer(number: int) -> Answer:
    ((classes,), (scores,)) = best_first(expected_scores([number]))
    return Answer(classes, scores, bool(number % 2))


class Observer:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.runs: list[Run] = []
        self.bad_rows = 0

    def encoded(self, model: BatchModel, seconds: float) -> None:
        assert seconds >= 0

    def run_told(self, computed: Computed, postprocess_s: float) -> None:
        assert computed.run is not None
        self.rows.append(len(computed.rows))
        self.runs.append(computed.run)

    def not_finite(self, model: BatchModel) -> None:
        self.bad_rows += 1
