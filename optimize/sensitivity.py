"""How much each layer group alone moves the answers when it is int8.

Every group in turn is int8 and all others float, and the answers are compared with those of the
float model. The other way round, one group float and all others int8, finds nothing where two
layers are broken: either hides the other. And where none but one is broken, its divergence stands
out from the others by orders of magnitude, not by the little that they leave.

The divergence is Kullback and Leibler's, from the float model's scores to those of the other, in
nats, the mean over rows. It is 0 for equal scores and does not see what moves all logits alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import Session
from edgewright.model_file import LOGITS
from edgewright.optimize.fewest import Clock
from edgewright.optimize.switch_graph import SWITCHES


@dataclass(frozen=True)
class Sensitivity:
    """One layer group's divergence in nats; infinite where its answers are no numbers."""

    group: str
    divergence: float


@dataclass(frozen=True)
class Ranking:
    """Groups, the most sensitive first.

    ``rows`` is how many rows the means are over; 0 where the time was not enough for one batch, and
    then there are no groups.
    """

    groups: tuple[Sensitivity, ...]
    rows: int


def rank_groups(
    session: Session,
    names: Sequence[str],
    batches: Iterator[Mapping[str, NDArray[Any]]],
    *,
    seconds: float,
    clock: Clock,
) -> Ranking:
    """Rank the groups of a graph with switches.

    One batch is held at a time. All groups see the same batches; where the time is over, those seen
    by all count, and the ranking may differ from that of a run with more time.

    Args:
        session: of the graph that ``add_switches`` made.
        names: of its groups, in the order of the switches; equal divergences keep it.
        batches: arrays by input name, without the switches; real rows.
        seconds: no batch begins later than this after the first.
        clock: seconds, monotonic.
    """
    deadline = clock() + seconds
    sums, rows = np.zeros(len(names)), 0
    for batch in batches:
        found = _of_batch(session, len(names), batch, deadline, clock)
        if found is None:
            break
        sums += found.sum(axis=1)
        rows += found.shape[1]
    if not rows:
        return Ranking((), 0)
    order = sorted(range(len(names)), key=lambda place: -sums[place])
    return Ranking(tuple(Sensitivity(names[i], float(sums[i] / rows)) for i in order), rows)


def _of_batch(
    session: Session,
    groups: int,
    batch: Mapping[str, NDArray[Any]],
    deadline: float,
    clock: Clock,
) -> NDArray[np.float64] | None:
    """Divergences of shape (groups, rows); None where the time was over before the last group."""
    answers = []
    for only in (None, *range(groups)):
        if clock() >= deadline:
            return None
        switches = np.zeros(groups, dtype=np.bool_)
        if only is not None:
            switches[only] = True
        answers.append(session.run({**batch, SWITCHES: switches})[LOGITS])
    return np.stack([divergence(answers[0], each) for each in answers[1:]])


def divergence(
    reference: NDArray[np.floating[Any]], logits: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Kullback-Leibler divergence by row, shape (rows,), of logits of shape (rows, classes)."""
    with np.errstate(invalid="ignore", over="ignore"):
        expected, found = _log_scores(reference), _log_scores(logits)
        rows = (np.exp(expected) * (expected - found)).sum(axis=1)
    rows[np.isnan(rows)] = math.inf
    return np.asarray(np.maximum(rows, 0.0))  # rounding may leave -1e-17


def _log_scores(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
