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
from edgewright.serve.call import Answer, BatchModel, Call, Encoded, Row, Run
from edgewright.serve.compute_threads import HandOver
from edgewright.serve.line import Batch, EncodedRun
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

    def __call__(self, taken: Batch | EncodedRun, hand_over: HandOver) -> None:
        """Compute what a thread has taken, but for runs of a batch that it hands over.

        Each row is told of exactly once, by whoever computes it. Nothing is raised.
        """
        started = self._clock()
        if isinstance(taken, EncodedRun):
            self._run(taken, started)
            return
        if taken.expired:
            self._expire(taken.model, [Row(call, call.taken) for call in taken.expired])
        runs = self._encoded(taken.model, taken.rows) if taken.rows else []
        if len(runs) > 1 and not taken.large:  # small calls take turns with all of a large batch
            hand_over(taken, runs[1:])
            runs = runs[:1]
        for run in runs:
            self._run(run, started)
            started = self._clock()

    def _encoded(self, model: BatchModel, rows: Sequence[Row]) -> list[EncodedRun]:
        """Runs of the rows that can be encoded; the callers of others are told."""
        taken = self._clock()
        try:
            encoded = model.encode([row.input for row in rows])
        except BaseException as error:  # an edge: the thread outlives even a panic in Rust
            calls = _by_call(rows)
            if len(calls) == 1:
                self._fail(model, rows, _told(model, error))
                return []
            shares = [[rows[place] for place in places] for places in calls]
            return [run for share in shares for run in self._encoded(model, share)]
        batch = Encoded(taken, self._clock())
        self._observer.encoded(model, batch.ended - batch.taken)
        return [
            EncodedRun(model, [rows[i] for i in run], [encoded[i] for i in run], batch)
            for run in runs_of_similar_length(
                [len(each) for each in encoded], model.row_by_row, self._run_tokens
            )
        ]

    def _expire(self, model: BatchModel, rows: Sequence[Row]) -> None:
        self._fail(
            model, rows, DeadlineError("the deadline passed before the inputs were computed")
        )

    def _wanted(self, run: EncodedRun) -> EncodedRun:
        """The rows that somebody waits for; those who wait for others are told."""
        now = self._clock()
        wanted = {place for place, row in enumerate(run.rows) if row.call.wanted(now)}
        if len(wanted) == len(run.rows):
            return run
        self._expire(run.model, [row for place, row in enumerate(run.rows) if place not in wanted])
        return run.part(sorted(wanted))

    def _run(self, run: EncodedRun, started: float) -> None:
        """Put a run through its model; ``started`` is when work on it began."""
        run = self._wanted(run)
        if not run.rows:
            return
        model, rows, encoded = run.model, run.rows, run.encoded
        run_started = self._clock()
        wanted = sorted({name for row in rows for name in row.call.extras})
        extras: Mapping[str, NDArray[np.float32]] = {}
        try:
            if wanted:
                scores, extras = model.scores_with(encoded, wanted)
            else:
                scores = model.scores(encoded)
            ended = self._clock()
            outcomes = self._outcomes(run, scores, extras)
        except BaseException as error:  # an edge, as above
            self._apart(run, error)
            return
        lengths = [len(each) for each in encoded]
        told = Run(run.batch, run_started, ended, len(rows), sum(lengths), padded_tokens(lengths))
        self._tell(Computed(model, rows, outcomes, ended - started, told))

    def _outcomes(
        self,
        run: EncodedRun,
        scores: NDArray[np.float32],
        extras: Mapping[str, NDArray[np.float32]],
    ) -> list[Answer | EdgewrightError]:
        model, rows = run.model, run.rows
        if len(scores) != len(rows):  # or some would wait for ever
            raise EdgewrightError(f"{model.name} gave {len(scores)} scores for {len(rows)} inputs")
        outcomes: list[Answer | EdgewrightError] = []
        for place, (classes, best) in enumerate(zip(*best_first(scores), strict=True)):
            row, one = rows[place], run.encoded[place]
            asked = {name: extras[name][place] for name in row.call.extras}
            if _finite(best, asked):
                outcomes.append(Answer(classes, best, one.truncated, asked))
            else:
                self._observer.not_finite(model)
                outcomes.append(_not_finite(model, row, one))
        return outcomes

    def _apart(self, run: EncodedRun, error: BaseException) -> None:
        """Compute every call's rows by themselves, so that the call at fault fails alone."""
        calls = _by_call(run.rows)
        if len(calls) == 1:
            self._fail(run.model, run.rows, _told(run.model, error))
            return
        for places in calls:
            self._run(run.part(places), self._clock())

    def _fail(self, model: BatchModel, rows: Sequence[Row], error: EdgewrightError) -> None:
        self._tell(Computed(model, rows, [error] * len(rows), 0.0, None))


def _by_call(rows: Sequence[Row]) -> list[list[int]]:
    """Places of each call's rows."""
    places: dict[Call, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.call, []).append(place)
    return list(places.values())


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
