"""What a loss is called: with labels accuracy is lost, without them answers differ."""

from __future__ import annotations

from typing import Final

from edgewright.bundle import Against, Certificate, Verdict
from edgewright.proof.certificate import MOST_ROWS

_SHARES: Final = {Against.LABELS: "accuracy", Against.REFERENCE: "agreement"}


def share_name(against: Against) -> str:
    """What the share of right answers is: "accuracy", or "agreement" with the model."""
    return _SHARES[against]


def points(share: float) -> str:
    """A share of rows in points of accuracy: 0.0123 is "1.23"."""
    return f"{100 * share:.2f}"


def amount(share: float, against: Against) -> str:
    """A loss with its unit: "1.23 points" of accuracy, or "1.23% of rows" that differ."""
    return f"{points(share)}{' points' if against is Against.LABELS else '% of rows'}"


def times(ratio: float, interval: tuple[float, float] | None) -> str:
    """A ratio with its interval: "2.50 (2.42–2.57)"."""
    return f"{ratio:.2f}" + ("" if interval is None else f" ({interval[0]:.2f}–{interval[1]:.2f})")


def counted(lost: int, won: int, against: Against) -> str:
    """Rows as they were counted: "3 lost and 1 won", or "3 answered otherwise"."""
    if against is Against.REFERENCE:
        return f"{lost} answered otherwise"
    return f"{lost} lost and {won} won"


def between(given: Certificate) -> str:
    """Both bounds that a certificate gives, and what is allowed."""
    low, high = points(given.loss_lower_bound), points(given.loss_upper_bound)
    allowed = points(given.budget)
    if given.against is Against.REFERENCE:
        told = f"answers between {low}% and {high}% of rows otherwise than the model"
        return f"{told}, and {allowed}% are allowed"
    return f"loses between {low} and {high} points of accuracy, and {allowed} are allowed"


def rows_wanted(given: Certificate) -> str:
    """What more rows an INCONCLUSIVE certificate asks for, as a clause."""
    if given.needed_n is not None:
        return f"at these rates {given.needed_n} certify rows would pass, and there are {given.n}"
    seen = f"with {counted(given.lost, given.won, given.against)} of {given.n} certify rows"
    hopeless = given.lost - given.won >= given.budget * given.n
    return f"{seen} {'no number of' if hopeless else f'more than {MOST_ROWS:,}'} rows would pass"


def verdict_words(given: Certificate) -> str:
    """What a certificate says of a candidate, as a sentence without its end."""
    if given.verdict is Verdict.REUSED:
        return "the certify split has been used for other files, and proves nothing of this one"
    if given.verdict is Verdict.INCONCLUSIVE:
        return f"{between(given)}; {rows_wanted(given)}"
    if given.verdict is Verdict.FAIL:
        return between(given)
    return given.at_most
