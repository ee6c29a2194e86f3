"""A batch computed: encoded, run in groups of similar length, and worded as answers.

Work whose caller has left, or whose deadline has passed, is dropped before each run. What one
caller's input did wrong never becomes its neighbours' error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgewright.errors import DeadlineError, EdgewrightError
from edgewright.preprocess import Row as EncodedRow
from edgewright.preprocess import TokenRow, padded_tokens
from edgewright.serve.call import Answer, BatchModel, Encoded, Row, Run
from edgewright.serve.line import Batch
from edgewright.serve.runs import runs_of_similar_length


class BatchObserver(Protocol):
    """Is told of every run."""

    def encoded(self, model: BatchModel, seconds: float) -> None:
        """A batch was encoded; on the compute thread."""
        ...

    def run_told(self, computed: Computed, postprocess_s: float) -> None:
        """The callers of a run's rows have their answers; on the event loop."""
        ...

    def not_finite(self, model: BatchModel) -> None:
        """A row had scores that are no numbers."""
        ...


class Computed(NamedTuple):
    """What became of some rows, for the event loop to tell their callers."""

    model: BatchModel
    rows: Sequence[Row]
    outcomes: Sequence[Answer | EdgewrightError]  # one for each row
    seconds: float  # that a thread spent on them, encoding among it; 0 where nothing was computed
    run: Run | None  # None where nothing was computed


class Compute:
    """Computes batches on the thread that calls it; safe to use from several."""

    def __init__(
        self,
        run_tokens: int,
        observer: BatchObserver,
        clock: Callable[[], float],
        tell: Callable[[Computed], None],
    ) -> None:
        """``run_tokens`` bounds rows times the longest of them; ``tell`` gets every run's rows."""
        self._run_tokens = run_tokens
        self._observer = observer
        self._clock = clock
        self._tell = tell

    def __call__(self, batch: Batch) -> None:
        """Compute ``batch`` and tell of each of its rows exactly once. Nothing is raised."""
        if batch.expired:
            self._expire(batch.model, [Row(call, call.taken) for call in batch.expired])
        if batch.rows:
            self._rows(batch.model, batch.rows)

    def _rows(self, model: BatchModel, rows: Sequence[Row]) -> None:
        started = self._clock()
        try:
            encoded = model.encode([row.input for row in rows])
        except BaseException as error:  # an edge: the thread outlives even a panic in Rust
            self._apart(model, rows, error)
            return
        batch = Encoded(started, self._clock())
        self._observer.encoded(model, batch.ended - batch.taken)
        lengths = [len(each) for each in encoded]
        for run in runs_of_similar_length(lengths, model.row_by_row, self._run_tokens):
            live, unwanted = self._sorted_out(rows, run)
            if unwanted:
                self._expire(model, unwanted)
            if live:
                of_live = [rows[i] for i in live], [encoded[i] for i in live]
                self._run(model, *of_live, started, batch)
            started = self._clock()

    def _expire(self, model: BatchModel, rows: Sequence[Row]) -> None:
        self._fail(
            model, rows, DeadlineError("the deadline passed before the inputs were computed")
        )

    def _sorted_out(self, rows: Sequence[Row], run: Sequence[int]) -> tuple[list[int], list[Row]]:
        """Indices of the rows that somebody waits for, and the other rows."""
        now = self._clock()
        live = [index for index in run if rows[index].call.wanted(now)]
        if len(live) == len(run):
            return live, []
        return live, [rows[index] for index in run if index not in live]

    def _run(
        self,
        model: BatchModel,
        rows: Sequence[Row],
        encoded: Sequence[EncodedRow],
        started: float,
        batch: Encoded,
    ) -> None:
        run_started = self._clock()
        wanted = sorted({name for row in rows for name in row.call.extras})
        extras: Mapping[str, NDArray[np.float32]] = {}
        try:
            if wanted:
                scores, extras = model.scores_with(encoded, wanted)
            else:
                scores = model.scores(encoded)
        except BaseException as error:  # an edge, as above
            self._apart(model, rows, error)
            return
        ended = self._clock()
        outcomes: list[Answer | EdgewrightError] = []
        for place, (classes, best) in enumerate(zip(*best_first(scores), strict=True)):
            row, one = rows[place], encoded[place]
            asked = {name: extras[name][place] for name in row.call.extras}
            if _finite(best, asked):
                outcomes.append(Answer(classes, best, one.truncated, asked))
            else:
                self._observer.not_finite(model)
                outcomes.append(_not_finite(model, row, one))
        lengths = [len(each) for each in encoded]
        run = Run(batch, run_started, ended, len(rows), sum(lengths), padded_tokens(lengths))
        self._tell(Computed(model, rows, outcomes, ended - started, run))

    def _apart(self, model: BatchModel, rows: Sequence[Row], error: BaseException) -> None:
        """Compute every call's rows by themselves, so that the call at fault fails alone."""
        by_call: dict[int, list[Row]] = {}
        for row in rows:
            by_call.setdefault(id(row.call), []).append(row)
        if len(by_call) == 1:
            self._fail(model, rows, _told(model, error))
            return
        for share in by_call.values():
            self._rows(model, share)

    def _fail(self, model: BatchModel, rows: Sequence[Row], error: EdgewrightError) -> None:
        self._tell(Computed(model, rows, [error] * len(rows), 0.0, None))


def _finite(scores: Sequence[float], extras: Mapping[str, NDArray[np.float32]]) -> bool:
    """Whether everything is a number that a row is answered with, extras of shape (width,).

    What were 32 bits each cannot overflow their sum, so that it is a number where all are.
    """
    return isfinite(sum(scores)) and all(np.isfinite(each).all() for each in extras.values())


def _told(model: BatchModel, error: BaseException) -> EdgewrightError:
    if isinstance(error, EdgewrightError):
        return error
    told = EdgewrightError(f"{model.name} failed: {error!r}")
    told.__cause__ = error
    return told


def _not_finite(model: BatchModel, row: Row, encoded: EncodedRow) -> EdgewrightError:
    text = isinstance(row.input, str | TokenRow)
    what = f"text {row.place} ({len(encoded)} tokens)" if text else f"image {row.place}"
    return EdgewrightError(f"{model.name} gave no finite scores for {what}")


def best_first(scores: NDArray[np.float32]) -> tuple[list[list[int]], list[list[float]]]:
    """Class indices and their scores by row, from scores of shape (rows, classes).

    Of equal scores the class with the lower index comes first.
    """
    order: list[list[int]] = (-scores).argsort(axis=1, kind="stable").tolist()
    # As lists: beside a model that has filled the cache, ``take_along_axis`` costs ten times this.
    rows = zip(scores.tolist(), order, strict=True)
    return order, [[row[index] for index in indices] for row, indices in rows]
