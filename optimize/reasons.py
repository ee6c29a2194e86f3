"""Why a candidate is not the one that is served."""

from __future__ import annotations

from edgewright.bundle import Certificate, Verdict
from edgewright.optimize.choice import SPEED_STEP, Rules
from edgewright.optimize.config import SIZE, SPEED
from edgewright.optimize.outcome import Outcome, Standing
from edgewright.optimize.words import counted, verdict_words


def why_not(outcome: Outcome, standing: Standing) -> str:
    """A clause for every candidate but the chosen one, of which there is nothing to say: ""."""
    if standing.name == outcome.chosen:
        return ""
    if standing.certificate is not None:
        return _of_a_trial(outcome, standing, standing.certificate)
    if standing.name == outcome.baseline.name:
        return "the others are held against it"
    return _without_a_trial(outcome, standing)


def _of_a_trial(outcome: Outcome, standing: Standing, given: Certificate) -> str:
    if given.verdict is not Verdict.PASS:
        return verdict_words(given)
    if not outcome.aim.is_gain(standing.contender):
        return "certified so that ONNX Runtime alone can serve the bundle"
    if outcome.chosen is None:
        return "passed, but nothing for ONNX Runtime did, and a bundle needs that"
    better = "faster" if outcome.config.prefer == SPEED else "smaller, or as small and faster"
    return f"may be served too; {outcome.chosen} is {better}"


def _without_a_trial(outcome: Outcome, standing: Standing) -> str:
    contender = standing.contender
    if not outcome.aim.is_gain(contender):
        return _no_gain(outcome, standing)
    config = outcome.config
    rules = Rules(config.max_drop, config.confidence, outcome.certify_n)
    search = contender.search
    rows = f"{counted(search.lost, search.won, outcome.search_against)} of {search.n} search rows"
    if rules.is_hopeless(contender):
        return f"search alone shows that it loses too much: {rows}"
    if config.prefer == SPEED and contender.speedup < SPEED_STEP:
        return f"faster by less than {SPEED_STEP - 1:.0%}, which is not worth one of three trials"
    if search.loss > config.max_drop:
        return f"others came before it, for it loses more on search than is allowed: {rows}"
    return "others came before it, and at most three are certified"


def _no_gain(outcome: Outcome, standing: Standing) -> str:
    contender = standing.contender
    if outcome.config.prefer == SIZE:
        if contender.speedup >= 1:
            return "not smaller than fp32"
        return "slower than fp32"
    if contender.speedup_high < 1:
        return "slower than fp32"
    return "not faster than fp32 beyond the noise"
