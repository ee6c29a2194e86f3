"""What timing has left open: intervals so wide that another candidate could have been chosen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from edgewright.optimize.choice import SPEED_STEP
from edgewright.optimize.config import SPEED
from edgewright.optimize.gain_split import ratio_between
from edgewright.optimize.outcome import Outcome
from edgewright.optimize.words import times

_ADVICE: Final = "the machine was busy, or its clock moved; run again when it is quiet"


def timing_doubts(outcome: Outcome) -> list[str]:
    """A sentence, without its end, for every candidate whose place was decided by noise.

    None where the smallest is preferred: its speed need not be told from that of others.
    """
    if outcome.config.prefer != SPEED:
        return []
    return [*_not_told_from_fp32(outcome), *_not_told_from_the_chosen(outcome)]


def _not_told_from_fp32(outcome: Outcome) -> Iterator[str]:
    """Who would be worth a trial by its speed, and has none for the width of its interval."""
    for standing in outcome.standings:
        contender = standing.contender
        if contender.speedup >= SPEED_STEP and not contender.is_faster:
            interval = (contender.speedup_low, contender.speedup_high)
            yield (
                f"{standing.name} was {times(contender.speedup, interval)} times as fast as fp32, "
                f"an interval so wide that it does not count as faster: {_ADVICE}"
            )


def _not_told_from_the_chosen(outcome: Outcome) -> Iterator[str]:
    """Who may be served too, and may be faster by more than what counts as equal."""
    if outcome.chosen is None:
        return
    chosen = outcome.standing(outcome.chosen)
    for name in outcome.shipped:
        _, interval = ratio_between(chosen, outcome.standing(name))
        if name != chosen.name and interval is not None and interval[1] > SPEED_STEP:
            yield (
                f"{name} may be up to {interval[1]:.2f} times as fast as {chosen.name}, which was "
                f"chosen: {_ADVICE}"
            )
