"""The fewest of a ranking with which something passes, in few evaluations.

    gallop   1, 2, 4, ... until one passes
    bisect   between the last that fails and the first that passes, until they are neighbours
    look on  at one more than the answer: where that fails, the outcomes do not rise with the number

For n there are at most 2*log2(n) + 3 evaluations. Bisection presumes that what passes with k passes
with more. Where it does not, the answer is still a number that passes beside one that does not, but
another such number may be smaller; ``Fewest.is_monotone`` tells what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

Clock = Callable[[], float]  # seconds, monotonic


class Ending(StrEnum):
    """Why a search ended."""

    FOUND = "found"
    NONE_PASSES = "none passes"
    OUT_OF_EVALUATIONS = "out of evaluations"
    OUT_OF_TIME = "out of time"


@dataclass(frozen=True)
class Fewest:
    """What a search found out.

    Attributes:
        k: the smallest number known to pass; None where none is.
        ending: why it ended; a ``k`` that is not FOUND may be larger than it need be.
        outcomes: every number that was evaluated, in order of the evaluations.
        n: the length of the ranking.
    """

    k: int | None
    ending: Ending
    outcomes: Mapping[int, bool]
    n: int

    @property
    def is_verified(self) -> bool:
        """Whether ``k`` passes and one fewer is known not to; none at all never does."""
        return self.k is not None and (self.k == 1 or self.outcomes.get(self.k - 1) is False)

    @property
    def is_monotone(self) -> bool:
        """Whether nothing that was evaluated fails with more than what passes."""
        failing = [k for k, passed in self.outcomes.items() if not passed]
        return self.k is None or all(k < self.k for k in failing)


class _CapReachedError(Exception):
    """Inside a search: no further evaluation is allowed."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending: Final = ending


def most_evaluations(n: int) -> int:
    """2*log2(n) + 4, rounded down: never fewer than a whole search needs."""
    return math.floor(2 * math.log2(n) + 4)


def fewest(
    n: int,
    passes: Callable[[int], bool],
    *,
    seconds: float,
    clock: Clock,
    evaluations: int | None = None,
    known: Mapping[int, bool] | None = None,
) -> Fewest:
    """The smallest k from 1 to ``n`` for which ``passes(k)``, where none of 0 is taken as known.

    Args:
        n: length of the ranking, at least 1.
        passes: whether the first k do; called once for each k at most.
        seconds: no evaluation begins later than this after the first.
        clock: seconds, monotonic.
        evaluations: cap on their number, ``known`` ones included; None is ``most_evaluations``.
        known: outcomes of an earlier search that was ended; they are not evaluated again.
    """
    search = _Search(n, passes, clock, clock() + seconds, evaluations, dict(known or {}))
    try:
        ending = search.run()
    except _CapReachedError as reached:
        ending = reached.ending
    passing = [k for k, passed in search.outcomes.items() if passed]
    return Fewest(search.found or min(passing, default=None), ending, search.outcomes, n)


class _Search:
    def __init__(
        self,
        n: int,
        passes: Callable[[int], bool],
        clock: Clock,
        deadline: float,
        evaluations: int | None,
        outcomes: dict[int, bool],
    ) -> None:
        if n < 1:
            raise ValueError(f"n is {n}; a ranking has one place or more")
        self.outcomes = outcomes
        self.found: int | None = None
        self._n, self._passes, self._clock, self._deadline = n, passes, clock, deadline
        self._most = most_evaluations(n) if evaluations is None else evaluations

    def run(self) -> Ending:
        """To the end; _CapReachedError where a cap is reached first."""
        failing, passing = self._gallop()
        if passing is None:
            return Ending.NONE_PASSES
        while passing - failing > 1:
            middle = (failing + passing) // 2
            if self._evaluate(middle):
                passing = middle
            else:
                failing = middle
        self.found = passing
        if passing < self._n:
            self._look_on(passing + 1)
        return Ending.FOUND

    def _gallop(self) -> tuple[int, int | None]:
        failing, k = 0, 1
        while not self._evaluate(k):
            if k == self._n:
                return k, None
            failing, k = k, min(2 * k, self._n)
        return failing, k

    def _look_on(self, k: int) -> None:
        """What it says changes no answer, so a cap that keeps it from being asked is no matter."""
        try:
            self._evaluate(k)
        except _CapReachedError:
            return

    def _evaluate(self, k: int) -> bool:
        if k not in self.outcomes:
            if len(self.outcomes) >= self._most:
                raise _CapReachedError(Ending.OUT_OF_EVALUATIONS)
            if self._clock() >= self._deadline:
                raise _CapReachedError(Ending.OUT_OF_TIME)
            self.outcomes[k] = self._passes(k)
        return self.outcomes[k]
