"""What the reader came for: what ships, what it can lose, and what it gains."""

from __future__ import annotations

from typing import Final

from edgewright.bundle import Against, Certificate, Verdict
from edgewright.optimize.config import SPEED
from edgewright.optimize.outcome import Outcome
from edgewright.optimize.words import amount, rows_wanted
from edgewright.report import Headline, Tone

TONES: Final = {
    Verdict.PASS: Tone.GOOD,
    Verdict.FAIL: Tone.BAD,
    Verdict.INCONCLUSIVE: Tone.WARN,
    Verdict.REUSED: Tone.WARN,
    Verdict.UNVERIFIED: Tone.WARN,
}


def headline(outcome: Outcome) -> Headline:
    """The verdict about the foremost candidate in plain words, with the figures behind it."""
    foremost = outcome.foremost
    if foremost is None or foremost.certificate is None:
        wanted = "faster" if outcome.config.prefer == SPEED else "smaller and not slower"
        text = f"Nothing to ship: nothing is {wanted}"
        return Headline(text, Tone.BAD, f"{outcome.reason()}.")
    given, contender = foremost.certificate, foremost.contender
    facts = [
        *(_proof(given) if given.verdict is not Verdict.REUSED else []),
        ("times as fast as fp32", f"{contender.speedup:.2f}"),
        ("size, of fp32", f"{outcome.size_ratio(foremost):.2f}"),
    ]
    if not outcome.shipped:
        text = f"{given.verdict}: nothing ships"
        return Headline(text, TONES[given.verdict], f"{outcome.reason()}.", facts)
    text = f"{given.verdict}: {foremost.name} ships"
    return Headline(text, TONES[given.verdict], _plain_words(given), facts)


def _proof(given: Certificate) -> list[tuple[str, str]]:
    lost = "accuracy lost" if given.against is Against.LABELS else "answers that differ"
    return [
        (f"{lost}, at most", amount(given.loss_upper_bound, given.against)),
        ("allowed", amount(given.budget, given.against)),
        ("certify rows", str(given.n)),
    ]


def _plain_words(given: Certificate) -> str:
    rows = "rows"
    counted = f"it lost {given.lost} that the model gets right and won {given.won}"
    meaning = ""
    if given.against is Against.REFERENCE:
        rows = "rows without labels"
        counted = f"it answered {given.lost} otherwise than the model"
        meaning = " It cannot lose more accuracy than that."
    if given.verdict is not Verdict.PASS:
        return (
            f"Not proven, and shipped because --allow-inconclusive was given: on {given.n} certify "
            f"{rows} {counted}; {rows_wanted(given)}."
        )
    return (
        f"On {given.n} {rows} that nothing else has seen {counted}. So it {given.at_most}; a "
        f"claim made this way is wrong in at most {100 * given.error_rate:g} of 100 cases.{meaning}"
    )
