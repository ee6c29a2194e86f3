"""How much accuracy a variant loses against its reference: an exact bound from paired rows.

Of n independent rows, b are right for the reference and wrong for the variant, c the reverse; the
rest agree. (b, c, n-b-c) is trinomial with chances p_b, p_c and 1-p_b-p_c, and the loss is
p_b - p_c. All that is reported here holds for every (p_b, p_c) at every n: no normal approximation.

One test. For H: loss >= d, outcomes are ordered by the score statistic with the restricted maximum
likelihood estimate of p_c (Tango, Statistics in Medicine 17:891, 1998; Nam, Biometrics 53:1422,
1997); low values speak against H. The p-value is the trinomial probability of all outcomes no
higher than the one seen, at loss d exactly, maximised over p_c on an interval, plus the interval's
error (Berger and Boos, JASA 89:1012, 1994; Hsueh, Liu and Chen, Biometrics 57:478, 2001).

The interval. At loss d, p_c = (s-d)/2 where s = p_b+p_c is the chance of a disagreement, and b+c is
binomial(n, s) whatever the loss. So p_c gets its Clopper-Pearson interval from all disagreements
and not from c alone, which says less: without any disagreement, one point at .03 takes 349 rows so
and 357 the other way. Its error is 1e-5; a larger one only costs (353 rows at 1e-3).

Losses beyond d. The statistic grows with b and falls with c. (With l the multiplier that holds the
loss at d, b = p_b(n+l(1-d)), c = p_c(n-l(1+d)), and the statistic is the signed root of l(b-c-nd)/n;
another b raises p_b, p_c, b-c-nd and l, never lowers one.) Hence the outcomes "no higher" are closed
under fewer b and more c, and moving (p_b, p_c) to the boundary, s held, only makes them likelier.

The maximum cannot be missed. By the same closure, for all s in [s1, s2] their probability is at
most that at p_b = (s1+d)/2, p_c = (s2-d)/2. Cells of s are halved until this ceiling, for every
cell, is within 1e-4 of the best value met, or on the wanted side of alpha; the ceiling is reported.

The bound. Losses are tested on a fixed grid of 1e-5, and the bound is the lowest grid loss from
which every one upwards is rejected, so a p-value that is not monotone in d does no harm: if the true
loss exceeds the bound, then the grid loss just below the truth, a true H, was rejected. Nothing
between the grid points needs to be known. Upwards of d, losses are dismissed many at a time, through
the union of their outcomes; far up, through a union that contains that of every higher loss: b may
grow by no more than c does, for (b+1, c+1) keeps b-c and has the larger variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special

from edgewright.errors import ConfigError

Floats = NDArray[np.float64]

_STEPS = 100_000  # grid losses per unit of loss
_NUISANCE_ERROR = 1e-5  # chance that the interval for the disagreements misses; part of every p
_SLACK = 1e-4  # relative; how far a reported maximum may lie above the true one
_TIE = 1e-9  # relative; statistics this close count as equal, which only enlarges p
_CELLS = 32
_ELEMENTS = 400_000  # of a temporary array


def loss_upper_bound(b: int, c: int, n: int, alpha: float) -> float:
    """Return the one-sided upper confidence bound on the loss p_b - p_c, a multiple of 1e-5.

    P(loss > bound) <= alpha for every p_b and p_c. ``loss_upper_bound(...) <= d`` says the same as
    ``p_value(..., d) <= alpha`` (up to the rounding of p, a part in a thousand).

    Args:
        b: rows the reference gets right and the variant wrong.
        c: rows the variant gets right and the reference wrong.
        n: all rows, independent of each other.
        alpha: error rate, in (0, .5).

    Raises:
        ConfigError: counts or alpha out of range.
    """
    _check(b, c, n, alpha=alpha)
    seen = _Outcome(b, c, n)
    lowest = seen.estimate_step()
    last = seen.last_accepted(lowest, alpha)
    return min(lowest if last is None else last + 1, _STEPS) / _STEPS


def loss_lower_bound(b: int, c: int, n: int, alpha: float) -> float:
    """Return the one-sided lower confidence bound on p_b - p_c: the upper one with sides swapped.

    P(loss < bound) <= alpha. Arguments and errors as in ``loss_upper_bound``.
    """
    return 0.0 - loss_upper_bound(c, b, n, alpha)


def p_value(b: int, c: int, n: int, delta: float) -> float:
    """Return the exact p-value of the hypothesis that the loss p_b - p_c is delta or more.

    The largest over the grid losses from delta (rounded down to the grid) upwards, so it never
    rises with delta. Rounded up, by less than a part in a thousand.

    Raises:
        ConfigError: counts out of range, or delta outside [-1, 1].
    """
    _check(b, c, n, delta=delta)
    seen = _Outcome(b, c, n)
    step = _floor_step(delta)
    p = seen.p_at(step)
    while p < 1 and (higher := seen.last_accepted(step + 1, p)) is not None:
        p = max(p * 1.001, seen.p_at(higher))
    return min(p, 1.0)


def meets_budget(b: int, c: int, n: int, budget: float, alpha: float) -> bool:
    """Say whether ``loss_upper_bound(b, c, n, alpha) <= budget``, without computing the bound.

    Raises:
        ConfigError: counts, budget or alpha out of range.
    """
    _check(b, c, n, alpha=alpha, budget=budget)
    seen, step = _Outcome(b, c, n), _floor_step(budget)
    return not seen.accepts(step, step, alpha) and seen.last_accepted(step, alpha) is None


def rows_needed(
    b: int, c: int, n: int, budget: float, alpha: float, limit: int = 1_000_000
) -> int | None:
    """Return the smallest number of rows whose bound would meet the budget at the rates seen.

    At m rows, b/n and c/n stand for ceil(m*b/n) and floor(m*c/n) rows. Passing comes and goes as
    those are rounded; searched are first the numbers of losses, each at its most rows, then the rows
    with that many losses, each by halving. None: the rate seen is not below the budget, or more
    than ``limit`` rows would be needed.

    Raises:
        ConfigError: counts, budget, alpha or limit out of range.
    """
    _check(b, c, n, alpha=alpha, budget=budget, limit=limit)
    if b - c >= budget * n:
        return None

    def passes(rows: int) -> bool:
        return meets_budget(-(-b * rows // n), c * rows // n, rows, budget, alpha)

    def most_rows(losses: int) -> int:
        return min(limit, losses * n // max(b, 1))

    losses = 1
    while not passes(most_rows(losses)):
        if most_rows(losses) == limit:
            return None
        losses *= 2
    losses = _first(lambda count: passes(most_rows(count)), losses // 2, losses)
    return _first(passes, most_rows(losses - 1), most_rows(losses))


def score_statistic(b: Floats | float, c: Floats | float, n: int, delta: float) -> Floats:
    """Return (b-c-n*delta) over its standard error at loss delta; b and c are broadcast.

    p_c is the larger root of 2n p^2 - B p - c*delta*(1-delta) = 0, B = b+c-delta(2n-b+c) (Tango 1998).
    """
    linear = b + c - delta * (2 * n - b + c)
    discriminant = np.maximum(linear**2 + 8 * n * c * delta * (1 - delta), 0)
    p_c = (linear + np.sqrt(discriminant)) / (4 * n)
    p_c = np.clip(p_c, max(0, -delta), (1 - delta) / 2)
    excess = b - c - n * delta
    variance = np.maximum(n * (2 * p_c + delta - delta**2), 1e-300)
    return np.asarray(excess / np.sqrt(variance), dtype=np.float64)


@dataclass(frozen=True)
class _Region:
    """Outcomes (b', c') with b' <= most_b[c'], and all those with c' >= len(most_b).

    ``most_b`` (columns,) never falls; -1: none in this column.
    """

    n: int
    most_b: Floats

    def probability(self, p_b: Floats, p_c: Floats) -> Floats:
        """Return the trinomial probability at each pair of chances, (cells,) -> (cells,)."""
        width = max(1, _ELEMENTS // len(self.most_b))
        slabs = [slice(i, i + width) for i in range(0, len(p_b), width)]
        return np.concatenate([self._slab(p_b[slab, None], p_c[slab, None]) for slab in slabs])

    def _slab(self, p_b: Floats, p_c: Floats) -> Floats:
        """Sum over the columns: chance of c', times that of b' <= most_b given c'."""
        n, columns = self.n, len(self.most_b)
        first = int(np.searchsorted(self.most_b, 0))
        c, most_b = np.arange(first, columns, dtype=np.float64), self.most_b[first:]
        choose = special.gammaln(n + 1) - special.gammaln(c + 1) - special.gammaln(n - c + 1)
        of_c = np.exp(choose + special.xlogy(c, p_c) + special.xlog1py(n - c, -p_c))
        others = np.clip(1 - p_b / np.maximum(1 - p_c, 1e-300), 0, 1)
        left = n - c - most_b
        of_b = np.ones_like(of_c)  # kept where that is exact, or a ceiling that weighs nothing
        weighs = (left > 0) & (of_c > 1e-15)
        special.betainc(np.maximum(left, 1), most_b + 1, others, out=of_b, where=weighs)
        total = (of_c * of_b).sum(axis=1)
        if columns <= n:
            total += special.betainc(columns, n - columns + 1, p_c[:, 0])
        return np.asarray(total, dtype=np.float64)

    def ceiling(self, delta: float, low: float, high: float, level: float) -> float:
        """Return a ceiling of the probability over losses >= delta and disagreements [low, high].

        It is within ``_SLACK`` of the maximum at loss delta, unless the side of ``level`` on which
        that lies is known sooner: then it is a number on that side. Level 0 asks for the maximum.
        """
        edges = np.linspace(low, high, _CELLS + 1)
        best = float(self._at(edges, edges, delta).max()) * (1 + _SLACK)
        low_s, high_s, settled = edges[:-1], edges[1:], 0.0
        while level <= 0 or best <= level:
            ceilings = self._at(low_s, high_s, delta)
            is_open = ceilings > max(best, level)
            settled = max(settled, float(ceilings[~is_open].max(initial=0)))
            if not is_open.any():
                break
            low_s, high_s = low_s[is_open], high_s[is_open]
            middle = (low_s + high_s) / 2
            best = max(best, float(self._at(middle, middle, delta).max()) * (1 + _SLACK))
            low_s, high_s = np.append(low_s, middle), np.append(middle, high_s)
        return max(best, settled)

    def _at(self, low_s: Floats, high_s: Floats, delta: float) -> Floats:
        """Probability at the corner of each cell that no point of the cell surpasses."""
        return self.probability(np.maximum(low_s + delta, 0) / 2, (high_s - delta) / 2)


@dataclass(frozen=True)
class _Outcome:
    """What was seen, and the tests of grid losses upon it; a step is a grid loss times ``_STEPS``."""

    b: int
    c: int
    n: int

    def estimate_step(self) -> int:
        """The lowest step not below the observed loss."""
        return -(-(self.b - self.c) * _STEPS // self.n)

    def p_at(self, step: int) -> float:
        """Return the p-value of one grid loss."""
        return self._p(step, step, 0.0)

    def accepts(self, first: int, last: int, alpha: float) -> bool:
        """Say whether some grid loss of first..last may have p > alpha; exact when first = last."""
        return self._p(first, last, alpha) > alpha

    def last_accepted(self, first: int, alpha: float, last: int = _STEPS) -> int | None:
        """Return the highest step of first..last with p > alpha; None if there is none."""
        if first > last or not self.accepts(first, last, alpha):
            return None
        if first == last:
            return last
        middle = (first + last) // 2
        upper = self.last_accepted(middle + 1, alpha, last)
        return self.last_accepted(first, alpha, middle) if upper is None else upper

    def _p(self, first: int, last: int, alpha: float) -> float:
        """Return a ceiling of p over the grid losses first..last, see ``_Region.ceiling``."""
        low, high = self.disagreements
        low = max(low, 0 if first <= 0 <= last else min(abs(first), abs(last)) / _STEPS)
        if low > high:  # no p_c in the interval allows such a loss
            return _NUISANCE_ERROR
        level = max(alpha - _NUISANCE_ERROR, 0.0)
        region = self._region(first / _STEPS, last / _STEPS)
        return region.ceiling(first / _STEPS, low, high, level) + _NUISANCE_ERROR

    @cached_property
    def disagreements(self) -> tuple[float, float]:
        """Clopper-Pearson interval for p_b + p_c."""
        count, n, tail = self.b + self.c, self.n, _NUISANCE_ERROR / 2
        low = special.betaincinv(count, n - count + 1, tail) if count else 0.0
        high = special.betaincinv(count + 1, n - count, 1 - tail) if count < n else 1.0
        return float(low), float(high)

    @cached_property
    def columns(self) -> Floats:
        """The c' to look at one by one: up to where a likely p_c leaves less than 1e-10."""
        mean, exponent = self.n * self.disagreements[1], math.log(1e10)
        last = math.ceil(mean + math.sqrt(2 * mean * exponent) + exponent * 2 / 3)  # Bernstein
        return np.arange(min(last, self.n) + 1, dtype=np.float64)

    def _region(self, low_delta: float, high_delta: float) -> _Region:
        """Return a region that holds the outcomes no higher than the one seen, at all these losses.

        It holds no others when the two losses are equal.
        """
        columns, n = self.columns, self.n
        seen = float(score_statistic(self.b, self.c, n, low_delta))
        seen += _TIE * max(1.0, abs(seen))
        low, high = np.full_like(columns, -1), n - columns
        if self.b - self.c < n * low_delta:
            high = np.minimum(high, self.b + np.maximum(columns - self.c, 0))
        while (low < high).any():
            middle = np.ceil((low + high) / 2)
            inside = score_statistic(middle, columns, n, high_delta) <= seen
            low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
        return _Region(n, np.maximum.accumulate(low))


def _first(test: Callable[[int], bool], low: int, high: int) -> int:
    """Halve (low, high], taking test(high) as true, to a number that passes after one that fails."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if test(middle) else (middle, high)
    return high


def _floor_step(delta: float) -> int:
    """The highest grid step not above delta; a decimal such as .015 is its own grid loss."""
    nearest = round(delta * _STEPS)
    return nearest if nearest / _STEPS <= delta else nearest - 1


def _check(
    b: int,
    c: int,
    n: int,
    *,
    alpha: float = 0.05,
    delta: float = 0.0,
    budget: float = 0.01,
    limit: int = 1,
) -> None:
    """Raise ConfigError with every fault found."""
    rules = [
        (n >= 1, f"n = {n}: at least one row is needed to bound a loss"),
        (b >= 0 and c >= 0, f"b = {b}, c = {c}: counts of rows cannot be negative"),
        (b + c <= max(n, 1), f"b + c = {b + c}: more disagreements than the n = {n} rows"),
        (0 < alpha < 0.5, f"alpha = {alpha}: an error rate lies between 0 and 0.5, e.g. 0.03"),
        (-1 <= delta <= 1, f"delta = {delta}: a loss of accuracy lies in [-1, 1], e.g. 0.01"),
        (0 < budget < 1, f"budget = {budget}: give the loss allowed as a fraction, e.g. 0.01"),
        (limit >= 1, f"limit = {limit}: at least one row must be allowed"),
    ]
    faults = [text for holds, text in rules if not holds]
    if faults:
        raise ConfigError(faults)
