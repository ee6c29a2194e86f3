"""Models timed in turns within one process.

Two models timed one after the other differ by what else the machine did meanwhile. So every round
times all of them, forwards in one and backwards in the next (A B C, C B A), and each is compared
with the baseline of its own round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgewright.latency import (
    Arrays,
    Effort,
    InputMaker,
    Samples,
    Shape,
    Timing,
    Workload,
    summarise,
)

Clock = Callable[[], float]  # seconds, monotonic

HERE: Final = Effort(budget_s=30.0, min_rounds=9)  # where there are no restarts
VARIETY: Final = 4  # different inputs by shape, taken in turn
_SETTLED: Final = 1.1  # warm when the slowest of the last three calls is within this of the fastest


def time_in_turns(
    runs: Mapping[str, Callable[[Arrays], object]],
    workload: Workload,
    make_inputs: InputMaker,
    *,
    effort: Effort,
    row_by_row: Collection[str] = (),
    clock: Clock = time.perf_counter,
) -> Samples:
    """Time several models in turns, after each has been called until it is warm.

    Args:
        runs: one forward pass of each model, by name.
        workload: what to time.
        make_inputs: gives the inputs of a shape.
        effort: how long to measure here: ``budget_s`` is for these calls alone.
        row_by_row: names of models that are served one row at a time: a call of 8x128 is eight of
            1x128 for them.
        clock: seconds; a parameter so that tests need not wait.
    """
    calls = {
        (name, shape): _Call(run, _feeds(make_inputs, shape, one_row=name in row_by_row))
        for shape in workload.shares
        for name, run in runs.items()
    }
    warm_up_s = 0.2 * effort.budget_s / len(calls)
    round_s = sum(_warm_up(call, warm_up_s, clock) for call in calls.values())
    affordable = int(0.8 * effort.budget_s / round_s) if round_s > 0 else effort.max_rounds
    rounds = max(effort.min_rounds, min(effort.max_rounds, affordable))
    seconds = {key: np.empty(rounds) for key in calls}
    for index in range(rounds):
        for key in calls if index % 2 == 0 else reversed(calls):
            seconds[key][index] = calls[key].time(index, clock)
    return {name: {shape: seconds[name, shape] for shape in workload.shares} for name in runs}


def compare(
    runs: Mapping[str, Callable[[Arrays], object]],
    baseline: str,
    workload: Workload,
    make_inputs: InputMaker,
    *,
    row_by_row: Collection[str] = (),
    effort: Effort = HERE,
    clock: Clock = time.perf_counter,
) -> dict[str, Timing]:
    """Time models against ``baseline`` in this process alone, for a server that will serve from it.

    Other arguments as of ``time_in_turns``. Intervals say nothing of another process;
    ``latency_process`` does.

    Raises:
        ConfigError: ``effort.min_rounds`` are too few to bound a median.
    """
    samples = time_in_turns(
        runs, workload, make_inputs, effort=effort, row_by_row=row_by_row, clock=clock
    )
    return summarise([samples], baseline, workload, effort.confidence)


@dataclass(frozen=True)
class _Call:
    """One model at one shape, with a few different inputs; each is a list of passes."""

    run: Callable[[Arrays], object]
    feeds: Sequence[Sequence[Arrays]]

    def time(self, index: int, clock: Clock) -> float:
        passes = self.feeds[index % len(self.feeds)]
        start = clock()
        for arrays in passes:
            self.run(arrays)
        return clock() - start


def _feeds(make_inputs: InputMaker, shape: Shape, *, one_row: bool) -> list[list[Arrays]]:
    feeds: list[list[Arrays]] = []
    for index in range(VARIETY):
        arrays = make_inputs(shape, index)
        rows = [slice(row, row + 1) for row in range(shape.rows)] if one_row else [slice(None)]
        feeds.append([{name: value[each] for name, value in arrays.items()} for each in rows])
    return feeds


def _warm_up(call: _Call, budget_s: float, clock: Clock) -> float:
    """Call until three in a row take about as long, or the time is up; seconds of the last ones."""
    seconds: list[float] = []
    while len(seconds) < 3 or max(seconds[-3:]) > _SETTLED * min(seconds[-3:]):
        seconds.append(call.time(len(seconds), clock))
        if len(seconds) >= 2 and sum(seconds) >= budget_s:
            break
    return float(np.median(seconds[1:][-3:]))  # the first is cold
