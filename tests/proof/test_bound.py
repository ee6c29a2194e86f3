"""The bound holds, by exact enumeration: no simulation, and nothing shared with the code but scipy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from edgewright.errors import ConfigError
from edgewright.proof.bound import (
    _Outcome,
    _Region,
    loss_lower_bound,
    loss_upper_bound,
    meets_budget,
    p_value,
    rows_needed,
    score_statistic,
)

Test = Callable[[int, int, int, float, float], bool]  # (b, c, n, budget, alpha) -> passes
GRID = 1e-5  # bounds are multiples of this


def wald(b: int, c: int, n: int, budget: float, alpha: float) -> bool:
    error = np.sqrt(max(b + c - (b - c) ** 2 / n, 0)) / n
    return bool((b - c) / n + stats.norm.isf(alpha) * error <= budget)


def normal_score(b: int, c: int, n: int, budget: float, alpha: float) -> bool:
    return bool(stats.norm.cdf(score_statistic(b, c, n, budget)) <= alpha)


def clopper_pearson_on_b(b: int, c: int, n: int, budget: float, alpha: float) -> bool:
    return b < n and bool(stats.beta.isf(alpha, b + 1, n - b) <= budget)


def most_losses(passes: Test, n: int, budget: float, alpha: float, most_c: int) -> NDArray[np.int_]:
    """For each c the largest b that passes, -1 if none; an observed loss at the budget never does."""
    most = []
    for c in range(most_c + 1):
        b = min(n - c, int(np.floor(n * budget)) + c)
        while b >= 0 and not passes(b, c, n, budget, alpha):
            b -= 1
        most.append(b)
    return np.array(most)


def pass_rate(n: int, loss: float, most: NDArray[np.int_], p_c: NDArray[np.float64]) -> float:
    """Largest chance over p_c (points,) to pass at this loss; c beyond the columns counts as passed."""
    c, p_c = np.arange(len(most)), p_c[:, None]
    of_b = stats.binom.cdf(most, n - c, np.minimum((p_c + loss) / (1 - p_c), 1))
    rates = (stats.binom.pmf(c, n, p_c) * of_b).sum(axis=1) + stats.binom.sf(c[-1], n, p_c[:, 0])
    return float(rates.max())


@cache
def false_pass_rate(passes: Test, n: int, budget: float, alpha: float) -> float:
    """The worst over p_c; beyond 60 rows only up to 12 rows won on average, to be quick."""
    most_c = min(n, 60 if n <= 60 else 36)
    p_c = np.linspace(0, (1 - budget) / 2 if n <= 60 else 12 / n, 801)
    return pass_rate(n, budget, most_losses(passes, n, budget, alpha, most_c), p_c)


@pytest.mark.parametrize("budget", [0.01, 0.015, 0.05])
@pytest.mark.parametrize(("n", "alpha"), [(30, 0.05), (60, 0.03), (170, 0.05), (400, 0.01)])
def test_a_loss_at_the_budget_passes_no_oftener_than_alpha(
    n: int, budget: float, alpha: float
) -> None:
    assert false_pass_rate(meets_budget, n, budget, alpha) <= alpha + 1e-9


@pytest.mark.parametrize(("n", "alpha"), [(170, 0.05), (400, 0.01)])
def test_it_is_not_safe_by_being_useless(n: int, alpha: float) -> None:
    assert false_pass_rate(meets_budget, n, 0.01, alpha) > 0.8 * alpha


def test_the_enumeration_finds_out_the_normal_approximations() -> None:
    assert false_pass_rate(wald, 170, 0.01, 0.05) > 0.15
    assert false_pass_rate(normal_score, 60, 0.05, 0.05) > 0.05


def test_the_bound_covers_every_pair_of_chances() -> None:
    n, alpha = 10, 0.05
    seen = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    upper = np.array([loss_upper_bound(b, c, n, alpha) for b, c in seen])
    outcomes = np.array([(b, c, n - b - c) for b, c in seen])
    for loss in np.unique(upper[upper < 1]) + 1e-7:  # the worst losses lie just above a bound
        p_c = np.linspace(max(0, -loss), (1 - loss) / 2, 200)[:, None]
        chances = np.concatenate([p_c + loss, p_c, 1 - loss - 2 * p_c], axis=1).clip(0, 1)
        missed = outcomes[upper < loss]
        rate = stats.multinomial.pmf(missed[:, None], n, chances[None]).sum(axis=0)
        assert rate.max() <= alpha + 1e-9, loss


def brute_force_p(b: int, c: int, n: int, delta: float) -> float:
    """Every outcome listed, the likelihood maximised by search, p_c on a dense grid."""

    def statistic(b: int, c: int) -> float:
        def cost(p: float) -> float:
            chances = np.maximum([p + delta, p, 1 - 2 * p - delta], 1e-300)
            return -float(np.array([b, c, n - b - c]) @ np.log(chances))

        ends = (max(0.0, -delta), (1 - delta) / 2)
        inner = optimize.minimize_scalar(
            cost, bounds=ends, method="bounded", options={"xatol": 1e-12}
        )
        p = min((*ends, float(inner.x)), key=cost)
        return (b - c - n * delta) / float(np.sqrt(n * (2 * p + delta - delta**2)))

    interval = stats.binomtest(b + c, n).proportion_ci(1 - 1e-5)
    s = np.linspace(max(interval.low, abs(delta)), interval.high, 4001)
    chances = np.stack([(s + delta) / 2, (s - delta) / 2, 1 - s], axis=1).clip(0, 1)
    seen = statistic(b, c)
    total = np.zeros(len(s))
    for other_b in range(n + 1):
        for other_c in range(n + 1 - other_b):
            if statistic(other_b, other_c) <= seen + 1e-6:
                outcome = [other_b, other_c, n - other_b - other_c]
                total += stats.multinomial.pmf(outcome, n, chances)
    return float(total.max()) + 1e-5


@pytest.mark.parametrize(
    ("b", "c", "n", "delta"),
    [
        (0, 0, 12, 0.2),
        (1, 2, 9, 0.35),
        (2, 0, 11, 0.5),
        (0, 4, 12, 0.05),
        (3, 5, 13, 0.1),
        (0, 6, 8, -0.2),
        (5, 5, 10, 0.3),
        (1, 1, 50, 0.12),
    ],
)
def test_the_p_value_is_that_of_brute_force(b: int, c: int, n: int, delta: float) -> None:
    assert p_value(b, c, n, delta) == pytest.approx(brute_force_p(b, c, n, delta), abs=1e-7)


@pytest.mark.parametrize(
    ("b", "c", "n"), [(0, 0, 30), (3, 2, 170), (0, 9, 170), (12, 7, 400), (1, 50, 80), (8, 8, 1000)]
)
@pytest.mark.parametrize("alpha", [0.03, 0.01])
def test_the_bound_is_the_lowest_loss_that_the_p_value_rejects(
    b: int, c: int, n: int, alpha: float
) -> None:
    upper = loss_upper_bound(b, c, n, alpha)
    assert p_value(b, c, n, upper) <= alpha < p_value(b, c, n, upper - GRID)
    if 0 < upper < 1:
        assert meets_budget(b, c, n, upper, alpha)
        assert not meets_budget(b, c, n, upper - GRID / 2, alpha)


def test_the_p_value_never_rises_with_the_loss_tested() -> None:
    # With (12, 7) of 400 the test of one loss alone does: outcomes join its tail near .0313.
    p = [p_value(12, 7, 400, delta) for delta in np.arange(0.0310, 0.0315, 0.00004)]
    assert (np.diff(p) <= 0).all()


@pytest.mark.parametrize(
    ("b", "c", "n", "rise"), [(8, 8, 1000, 380), (1, 50, 80, -49_065), (12, 7, 400, 3120)]
)
def test_losses_rejected_together_would_each_be_rejected_alone(
    b: int, c: int, n: int, rise: int
) -> None:
    seen = _Outcome(b, c, n)  # its p rises with the loss at this step, if tested alone
    assert seen.p(rise + 20, rise + 20) > seen.p(rise, rise) + 0.005
    for first in (rise - 20_000, rise - 300, rise - 7, rise, rise + 11):
        for width in (3, 40, 400, 40_000):
            steps = range(first, first + width, max(1, width // 20))
            alone = max(seen.p(step, step) for step in steps)
            assert seen.p(first, first + width - 1) >= alone - 1e-6, (first, width)


def test_a_narrow_maximum_inside_a_wide_interval_is_found() -> None:
    # Likeliest where 1,000,000 * p_b is about 280; the interval for it is 0..2,000.
    n, delta, first_c = 1_000_000, -0.05, 49_000
    region = _Region(n, first_c, np.where(np.arange(first_c, 54_000) < 50_300, -1.0, 300.0))
    p_b = np.linspace(200, 360, 161) / n
    highest = region.probability(p_b, p_b - delta).max()
    assert highest <= region.maximum(delta, 0.05, 0.054) <= highest + 1e-4


@pytest.mark.parametrize("delta", [-0.5, -0.004, 0.0])
def test_a_loss_below_the_likely_ones_is_not_rejected(delta: float) -> None:
    assert p_value(5, 2, 600, delta) > 0.5


def test_balanced_disagreements_cost_little() -> None:
    # The variant loses and wins 1% of the rows each: nothing is lost, and b alone hides that.
    n, budget, alpha, p_c = 600, 0.015, 0.03, np.array([0.01])
    exact = pass_rate(n, 0.0, most_losses(meets_budget, n, budget, alpha, 30), p_c)
    b_alone = pass_rate(n, 0.0, most_losses(clopper_pearson_on_b, n, budget, alpha, 30), p_c)
    assert exact > 3 * b_alone
    assert exact > 0.5


def test_more_losses_raise_the_bound_and_more_wins_lower_it() -> None:
    by_b = [loss_upper_bound(b, 3, 170, 0.03) for b in range(9)]
    by_c = [loss_upper_bound(3, c, 170, 0.03) for c in range(9)]
    by_n = [loss_upper_bound(2, 2, n, 0.03) for n in (50, 100, 200, 400, 800)]
    assert (np.diff(by_b) > 0).all()
    assert (np.diff(by_c) < 0).all()
    assert (np.diff(by_n) < 0).all()


@pytest.mark.parametrize(("b", "c", "n"), [(0, 0, 1), (3, 2, 60), (0, 7, 60), (60, 0, 60)])
def test_the_lower_bound_is_the_upper_one_with_sides_swapped(b: int, c: int, n: int) -> None:
    lower, upper = loss_lower_bound(b, c, n, 0.03), loss_upper_bound(b, c, n, 0.03)
    assert lower == -loss_upper_bound(c, b, n, 0.03)
    assert -1 <= lower <= (b - c) / n <= upper <= 1


@pytest.mark.parametrize("n", [30, 349])
def test_the_ends_have_closed_forms(n: int) -> None:
    left = 0.03 - 1e-5  # the interval for the disagreements takes the rest
    assert loss_upper_bound(n, 0, n, 0.03) == 1
    ends = {(0, n): 1 - 2 * left ** (1 / n), (0, 0): 1 - left ** (1 / n)}
    for (b, c), end in ends.items():
        assert loss_upper_bound(b, c, n, 0.03) == pytest.approx(end, abs=2 * GRID)


@pytest.mark.parametrize("n", [1, 30, 349])
def test_without_a_disagreement_it_claims_no_more_than_losses_alone_would_allow(n: int) -> None:
    """At p_c = 0 no method can do better; at .01 the worst p_c is another, and costs a little."""
    losses_alone = 1 - 0.01 ** (1 / n)
    assert losses_alone <= loss_upper_bound(0, 0, n, 0.01) <= 1.1 * losses_alone


def test_one_point_takes_349_rows_without_a_disagreement() -> None:
    assert rows_needed(0, 0, 100, 0.01, 0.03) == 349
    assert meets_budget(0, 0, 349, 0.01, 0.03)
    assert not meets_budget(0, 0, 348, 0.01, 0.03)


@pytest.mark.parametrize(
    ("b", "c", "n", "budget", "alpha"),
    [(1, 1, 100, 0.02, 0.05), (2, 0, 170, 0.03, 0.03), (0, 4, 170, 0.01, 0.03)],
)
def test_needed_rows_are_the_fewest_that_pass_at_the_rates_seen(
    b: int, c: int, n: int, budget: float, alpha: float
) -> None:
    passing = (
        rows
        for rows in range(1, 1000)
        if meets_budget(-(-b * rows // n), c * rows // n, rows, budget, alpha)
    )
    assert rows_needed(b, c, n, budget, alpha) == next(passing)


def test_no_number_of_rows_is_enough_when_the_rate_seen_is_over_the_budget() -> None:
    assert rows_needed(10, 0, 1000, 0.01, 0.03) is None
    assert rows_needed(0, 0, 10, 0.01, 0.03, limit=348) is None
    assert rows_needed(0, 0, 10, 0.01, 0.03, limit=349) == 349


def test_many_rows_need_no_approximation() -> None:
    b, c, n, alpha = 25, 20, 20_000, 0.03
    upper, lower = loss_upper_bound(b, c, n, alpha), loss_lower_bound(b, c, n, alpha)
    normal = 1.881 * np.sqrt(b + c) / n  # near enough with so many
    assert upper == pytest.approx((b - c) / n + normal, rel=0.1)
    assert lower == pytest.approx((b - c) / n - normal, rel=0.1)


def test_lopsided_counts_are_searched_in_pieces() -> None:
    # Here the interval is wide beside the scale on which the tail changes: n*p_c is about 2.
    b, c, n, alpha = 9000, 2, 100_000, 0.03
    upper = loss_upper_bound(b, c, n, alpha)
    assert upper == pytest.approx(stats.beta.isf(alpha, b + 1, n - b) - c / n, abs=5e-5)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        loss_upper_bound(-1, 5, 3, 0.7)
    assert len(error.value.faults) == 3
    for call in (
        lambda: loss_lower_bound(0, 0, 0, 0.03),
        lambda: p_value(0, 0, 10, 1.5),
        lambda: p_value(6, 5, 10, 0.01),
        lambda: meets_budget(0, 0, 10, 0.0, 0.03),
        lambda: rows_needed(0, 0, 10, 1.0, 0.03),
        lambda: rows_needed(0, 0, 10, 0.01, 0.0),
        lambda: rows_needed(0, 0, 10, 0.01, 0.03, limit=0),
    ):
        with pytest.raises(ConfigError):
            call()
