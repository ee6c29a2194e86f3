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
and 357 the other way. Its error is 1e-5; a larger one costs rows (353 at 1e-3).

Losses beyond d. The statistic grows with b, and falls as c or d grows. (With l the slope of the
profile likelihood in d, b = p_b(n+l(1-d)), c = p_c(n-l(1+d)), and the statistic is the signed root
of l(b-c-nd)/n. One more b lowers neither p_b, p_c, l nor b-c-nd; c is b with the signs changed;
and that likelihood is concave, so l falls with d.) Hence the outcomes "no higher" are closed under
fewer b and more c, and a loss beyond d, at the same s, makes them no likelier than d itself does.

The maximum cannot be missed. Their probability is a polynomial in s. It is interpolated at
Chebyshev points; in the complex plane it is at most (|p_b|+|p_c|+|1-s|)^n, which bounds what
interpolation misses (Trefethen, Approximation Theory and Approximation Practice, 2013, theorem
8.2), and the interval is halved until that is below 1e-9. The interpolant is a cosine series, whose
second derivative bounds what is missed between the points where it is looked up. Both go into p.

The bound. Losses are tested on a fixed grid of 1e-5, and the bound is the lowest grid loss from
which every one upwards is rejected, so a p-value that rises with d somewhere does no harm: if the
true loss exceeds the bound, then the grid loss just below the truth, a true H, was rejected.
Nothing between the grid points needs to be known. Losses d1..d2 are rejected at once if, at d1,
the outcomes whose statistic at d2 is no higher than the seen one's at d1 are unlikely enough; those
with b grown by more than c need not be counted: (b+1, c+1) keeps b-c and has the larger variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

from edgewright.errors import ConfigError

Floats = NDArray[np.float64]

_STEPS = 100_000  # grid losses per unit of loss
_NUISANCE_ERROR = 1e-5  # chance that the interval for the disagreements misses; part of every p
_TIE = 1e-9  # relative; statistics this close count as equal, which only enlarges p
_DEGREE = 48  # of the polynomial in s that stands for the probability
_POINTS = 4096  # at which that polynomial is looked up
_ROUNDING = 1e-9  # more than floating point loses in a probability


def loss_upper_bound(b: int, c: int, n: int, alpha: float) -> float:
    """Return the one-sided upper confidence bound on the loss p_b - p_c, a multiple of 1e-5.

    P(loss > bound) <= alpha for every p_b and p_c. The bound is at most d just when
    ``p_value(b, c, n, d) <= alpha``, for a d not below the observed loss.

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
    lowest = -(-(b - c) * _STEPS // n)  # the observed loss, rounded up
    last = seen.last_accepted(lowest, alpha)
    return min(lowest if last is None else last + 1, _STEPS) / _STEPS


def loss_lower_bound(b: int, c: int, n: int, alpha: float) -> float:
    """Return the one-sided lower confidence bound on p_b - p_c: the upper one with sides swapped.

    P(loss < bound) <= alpha. Arguments and errors as in ``loss_upper_bound``.
    """
    return 0.0 - loss_upper_bound(c, b, n, alpha)


def p_value(b: int, c: int, n: int, delta: float) -> float:
    """Return the exact p-value of the hypothesis that the loss p_b - p_c is delta or more.

    The largest over the grid losses from delta (rounded down to the grid) upwards, so that it never
    rises with delta.

    Raises:
        ConfigError: counts out of range, or delta outside [-1, 1].
    """
    _check(b, c, n, delta=delta)
    return _Outcome(b, c, n).highest_p(_floor_step(delta))


def meets_budget(b: int, c: int, n: int, budget: float, alpha: float) -> bool:
    """Say whether ``loss_upper_bound(b, c, n, alpha) <= budget``, without computing the bound.

    Raises:
        ConfigError: counts, budget or alpha out of range.
    """
    _check(b, c, n, alpha=alpha, budget=budget)
    seen, step = _Outcome(b, c, n), _floor_step(budget)
    return seen.p(step, step) <= alpha and seen.last_accepted(step, alpha) is None


def rows_needed(
    b: int, c: int, n: int, budget: float, alpha: float, limit: int = 1_000_000
) -> int | None:
    """Return the smallest number of rows whose bound would meet the budget at the rates seen.

    At m rows, b/n and c/n stand for ceil(m*b/n) and floor(m*c/n) rows. Passing comes and goes as
    those are rounded, so the numbers of losses are searched first, each at its most rows, then the
    rows with that many losses; both by halving. Beyond 1,000 rows the answer may be a thousandth
    too high. None: the rate seen is not below the budget, or more than ``limit`` rows are needed.

    Raises:
        ConfigError: counts, budget, alpha or limit out of range.
    """
    _check(b, c, n, alpha=alpha, budget=budget, limit=limit)
    if b - c >= budget * n:
        return None
    step = _floor_step(budget)

    def scaled(rows: int) -> _Outcome:
        return _Outcome(-(-b * rows // n), c * rows // n, rows)

    def passes(rows: int) -> bool:
        return scaled(rows).p(step, step) <= alpha

    def most_rows(losses: int) -> int:
        return min(limit, losses * n // max(b, 1))

    losses = 1
    while not passes(most_rows(losses)):
        if most_rows(losses) == limit:
            return None
        losses *= 2
    losses = _first(lambda count: passes(most_rows(count)), losses // 2, losses)
    rows = _first(passes, most_rows(losses - 1), most_rows(losses))
    while scaled(rows).last_accepted(step, alpha) is not None:  # a higher loss is not rejected yet
        rows += max(1, rows // 1000)
    return rows if rows <= limit else None


def score_statistic(b: Floats | float, c: Floats | float, n: int, delta: float) -> Floats:
    """Return (b-c-n*delta) over its standard error at loss delta; b and c are broadcast.

    At that loss the likeliest p_c is the larger root of 2n p^2 - k p - c*delta*(1-delta) = 0 with
    k = b + c - delta*(2n-b+c) (Tango 1998).
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
    """A set of outcomes (b', c') of n rows: for c' = first_c, first_c + 1 ..., those b' <= most_b.

    Beyond the columns of ``most_b`` (columns,), on either side, every outcome belongs to it.
    """

    n: int
    first_c: int
    most_b: Floats  # -1: none in this column

    def probability(self, p_b: Floats, p_c: Floats) -> Floats:
        """Return the trinomial probability at each pair of chances, (points,) -> (points,)."""
        n, first_c, end_c = self.n, self.first_c, self.first_c + len(self.most_b)
        total = np.zeros_like(p_c)
        if first_c > 0:
            total += special.betainc(n - first_c + 1, first_c, 1 - p_c)
        if end_c <= n:
            total += special.betainc(end_c, n - end_c + 1, p_c)
        p_b, p_c = p_b[:, None], p_c[:, None]
        some = self.most_b >= 0
        c, most_b = np.arange(first_c, end_c, dtype=np.float64)[some], self.most_b[some]
        choose = special.gammaln(n + 1) - special.gammaln(c + 1) - special.gammaln(n - c + 1)
        of_c = np.exp(choose + special.xlogy(c, p_c) + special.xlog1py(n - c, -p_c))
        not_b = np.clip(1 - p_b / np.maximum(1 - p_c, 1e-300), 0, 1)
        left = n - c - most_b
        of_b = np.where(left > 0, special.betainc(np.maximum(left, 1), most_b + 1, not_b), 1.0)
        return np.asarray(total + (of_c * of_b).sum(axis=1), dtype=np.float64)

    def maximum(self, delta: float, low: float, high: float) -> float:
        """Return the largest probability at loss delta for disagreements s in [low, high].

        Never too small: all that the search may miss is added.
        """
        middle, half = (high + low) / 2, (high - low) / 2
        truncation = self._truncation(delta, middle, half)
        if truncation > _ROUNDING:
            return max(self.maximum(delta, low, middle), self.maximum(delta, middle, high))
        s = middle + half * np.cos(np.pi * np.arange(_DEGREE + 1) / _DEGREE)
        values = self.probability((s + delta) / 2, np.maximum(s - delta, 0) / 2)
        series = fft.dct(values, type=1) / _DEGREE  # of cos(k*angle), s = middle + half*cos(angle)
        series[[0, -1]] /= 2
        terms = np.zeros(_POINTS + 1)
        terms[: _DEGREE + 1] = series / 2
        terms[0] = series[0]
        curvature = float(np.arange(_DEGREE + 1) ** 2 @ np.abs(series))
        between_points = curvature * (np.pi / _POINTS / 2) ** 2 / 2
        missed = between_points + truncation + _ROUNDING
        return float(fft.dct(terms, type=1).max()) + missed

    def _truncation(self, delta: float, middle: float, half: float) -> float:
        """Bound the error of Chebyshev interpolation, by the best of a few Bernstein ellipses.

        The modulus of the polynomial is at most (|p_b|+|p_c|+|1-s|)^n. That is convex in s, so in a
        rectangle around the ellipse it is largest at a corner.
        """
        rho = np.geomspace(1.05, 50, 40)
        corner = half * (1 + 1j) / 2 * np.array([1, -1])[:, None] * rho
        corner += half * (1 - 1j) / 2 * np.array([1, -1])[:, None] / rho
        s = middle + corner
        modulus = (np.abs(s + delta) + np.abs(s - delta)) / 2 + np.abs(1 - s)
        exponent = self.n * np.log(modulus.max(axis=0)) - _DEGREE * np.log(rho)
        return float((4 * np.exp(np.minimum(exponent, 0)) / (rho - 1)).min())


@dataclass(frozen=True)
class _Outcome:
    """What was seen, and the tests of losses upon it; losses are given in steps of the grid."""

    b: int
    c: int
    n: int

    def last_accepted(self, first: int, alpha: float, last: int = _STEPS) -> int | None:
        """Return the highest step of first..last with p > alpha; None if there is none."""
        if first > last or self.p(first, last) <= alpha:
            return None
        if first == last:
            return last
        middle = (first + last) // 2
        upper = self.last_accepted(middle + 1, alpha, last)
        return self.last_accepted(first, alpha, middle) if upper is None else upper

    def highest_p(self, first: int, last: int = _STEPS, best: float = 0.0) -> float:
        """Return the largest p of the steps first..last, or ``best`` if that is larger."""
        ceiling = self.p(first, last)
        if ceiling <= best or first == last:
            return max(ceiling, best)
        middle = (first + last) // 2
        best = self.highest_p(first, middle, max(best, self.p(first, first)))
        return self.highest_p(middle + 1, last, best)

    def p(self, first: int, last: int) -> float:
        """Return a ceiling of the p-values of the grid losses first..last; of one, its p-value."""
        low, high = self.disagreements
        nearest = 0 if first <= 0 <= last else min(abs(first), abs(last))
        if (nearest - 1) / _STEPS > high:  # so large a loss needs more disagreements; 1: rounding
            return _NUISANCE_ERROR
        # At the same s the lowest loss makes the outcomes likeliest; where s is too small for it,
        # they are likelier still at p_b = 0, p_c = -loss.
        delta = first / _STEPS
        low = max(low, abs(delta))
        high = max(low, high)
        region = self._region(delta, last / _STEPS, (low - delta) / 2, (high - delta) / 2)
        return min(1.0, region.maximum(delta, low, high) + _NUISANCE_ERROR)

    @cached_property
    def disagreements(self) -> tuple[float, float]:
        """Clopper-Pearson interval for s = p_b + p_c."""
        count, n, tail = self.b + self.c, self.n, _NUISANCE_ERROR / 2
        low = special.betaincinv(count, n - count + 1, tail) if count else 0.0
        high = special.betaincinv(count + 1, n - count, 1 - tail) if count < n else 1.0
        return float(low), float(high)

    def _region(self, low_delta: float, high_delta: float, low: float, high: float) -> _Region:
        """Return a region that holds the outcomes no higher than the one seen, at all these losses.

        It holds no others when the two losses are equal, but for the columns that are unlikely
        (1e-10) for every p_c in [low, high].
        """
        n, columns = self.n, _columns(self.n, low, high)
        seen = float(score_statistic(self.b, self.c, n, low_delta))
        seen += _TIE * max(1.0, abs(seen))
        few, many = np.full_like(columns, -1), n - columns
        if self.b - self.c < n * low_delta:
            many = np.minimum(many, self.b + np.maximum(columns - self.c, 0))
        while (few < many).any():
            middle = np.ceil((few + many) / 2)
            inside = score_statistic(middle, columns, n, high_delta) <= seen
            few, many = np.where(inside, middle, few), np.where(inside, many, middle - 1)
        return _Region(n, int(columns[0]), few)


def _columns(n: int, low: float, high: float) -> Floats:
    """Return the c' that matter when p_c is in [low, high]: 1e-10 on either side do not.

    By Chernoff's bound below and Bernstein's above.
    """
    exponent = math.log(1e10)
    first = math.floor(n * low - math.sqrt(2 * n * low * exponent))
    last = math.ceil(n * high + math.sqrt(2 * n * high * exponent) + exponent * 2 / 3)
    return np.arange(max(first, 0), min(last, n) + 1, dtype=np.float64)


def _first(test: Callable[[int], bool], low: int, high: int) -> int:
    """Halve (low, high] down to a number that passes where the one before fails; high passes."""
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
