"""Which candidates may see the certify split, and which of those that passed is served.

A contender is a file on a runtime that has been searched and timed. The shortlist is frozen before
any certify row is read, and its order decides the error rates, so its rules are coarse on purpose:
measurements move by a few percent from run to run (fresh processes were seen to differ by 7%), and
the list should not. Speeds within ``SPEED_STEP`` of each other count as equal; among equals the one
that lost fewer search rows, then the smaller file, then the name, goes first. A file that already
has a trial in the ledger keeps its place in it: to look at its counts again costs no row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgewright.bundle import Certificate, Verdict
from edgewright.proof.bound import loss_lower_bound, meets_budget
from edgewright.proof.certificate import SLOTS, PairedCounts, error_rates

SPEED_STEP: Final = 1.10
SERVABLE_BACKEND: Final = "onnxruntime"  # what `pip install edgewright[serve]` alone brings


@dataclass(frozen=True)
class Contender:
    """What search and timing know of one candidate; speeds are ratios to fp32 on ONNX Runtime."""

    name: str
    backend: str
    size_bytes: int
    search: PairedCounts  # against the reference, on the search split
    speedup: float
    speedup_low: float
    speedup_high: float

    @property
    def is_faster(self) -> bool:
        """Whether it is faster than fp32 on ONNX Runtime beyond the noise of the measurement."""
        return self.speedup_low > 1.0


@dataclass(frozen=True)
class Rules:
    """What the shortlist is drawn up for."""

    budget: float
    confidence: float
    certify_n: int

    def is_hopeless(self, contender: Contender) -> bool:
        """Whether the search split alone shows, at the run's confidence, that it loses too much."""
        search = contender.search
        if not search.n:
            return False
        lower = loss_lower_bound(search.lost, search.won, search.n, 1 - self.confidence)
        return lower > self.budget

    def is_likely(self, contender: Contender) -> bool:
        """Whether it would pass in the last slot if certify repeated the rates of search."""
        counts = contender.search.at(self.certify_n)
        error_rate = error_rates(self.confidence)[-1]
        return meets_budget(counts.lost, counts.won, counts.n, self.budget, error_rate)


def rank(contenders: Sequence[Contender], budget: float) -> list[Contender]:
    """Best first: within the budget on search, then by speed class, search loss, size and name."""
    by_speed = sorted(contenders, key=lambda each: (-each.speedup, each.name))
    speed_class, leader = {}, float("inf")
    for contender in by_speed:
        if contender.speedup * SPEED_STEP < leader:
            leader = contender.speedup
        speed_class[contender.name] = -leader
    return sorted(
        contenders,
        key=lambda each: (
            each.search.loss > budget,
            speed_class[each.name],
            each.search.loss,
            each.size_bytes,
            each.name,
        ),
    )


def shortlist(
    contenders: Sequence[Contender],
    baseline: Contender,
    rules: Rules,
    tried: Collection[str] = (),
    free_slots: int = SLOTS,
) -> list[Contender]:
    """At most ``SLOTS`` contenders, in the order in which they are certified.

    Only what is faster than the baseline is worth a trial; what is faster by less than
    ``SPEED_STEP`` is so only where nothing else is. One that search has shown to lose too
    much is left out, unless nothing better is there: then the fastest such gets its verdict. A
    list with a runtime that `edgewright[serve]` does not bring must hold one likely to pass on
    ONNX Runtime, or else the baseline itself, so that the bundle can be served by it.

    Args:
        contenders: every candidate but the baseline.
        baseline: fp32 on ONNX Runtime.
        rules: budget, confidence and the rows of the certify split.
        tried: names that have a trial in the ledger; they come first.
        free_slots: trials that the ledger has left; who comes after them will be REUSED.
    """
    faster = rank([each for each in contenders if each.is_faster], rules.budget)
    faster = [each for each in faster if each.speedup >= SPEED_STEP] or faster
    hopeful = [each for each in faster if not rules.is_hopeless(each)] or faster[:1]
    known = [each for each in hopeful if each.name in tried]
    chosen = (known + [each for each in hopeful if each.name not in tried])[:SLOTS]
    if all(each.backend == SERVABLE_BACKEND for each in chosen):
        return chosen
    servable = [each for each in hopeful if each.backend == SERVABLE_BACKEND]
    likely = next((each for each in servable if rules.is_likely(each)), baseline)
    if any(each.name == likely.name or _is_likely_servable(each, rules) for each in chosen):
        return chosen
    trials = sum(each.name in tried for each in chosen) + free_slots
    place = min(len(chosen), SLOTS - 1, max(trials - 1, 1))
    return [*chosen[:place], likely, *chosen[place:]][:SLOTS]


def _is_likely_servable(contender: Contender, rules: Rules) -> bool:
    return contender.backend == SERVABLE_BACKEND and rules.is_likely(contender)


def shippable(
    frozen: Sequence[Contender],
    certificates: Mapping[str, Certificate],
    *,
    allow_inconclusive: bool,
) -> list[Contender]:
    """What may go into the bundle, fastest first: empty when no bundle can be made of it.

    A bundle needs one that is faster than the baseline, and one for ONNX Runtime. Those that passed
    come first; with ``allow_inconclusive``, and only where they are not enough, the INCONCLUSIVE
    ones come along. FAIL and REUSED never do.
    """
    passed = _of_verdict(frozen, certificates, Verdict.PASS)
    if _makes_bundle(passed):
        return passed
    if allow_inconclusive:
        allowed = passed + _of_verdict(frozen, certificates, Verdict.INCONCLUSIVE)
        if _makes_bundle(allowed):
            return allowed
    return []


def choose(shipped: Sequence[Contender]) -> Contender:
    """The one to serve from what ``shippable`` gave: the first that is faster than the baseline."""
    return next(each for each in shipped if each.is_faster)


def _of_verdict(
    frozen: Sequence[Contender], certificates: Mapping[str, Certificate], verdict: Verdict
) -> list[Contender]:
    found = [each for each in frozen if certificates[each.name].verdict is verdict]
    return sorted(found, key=lambda each: -each.speedup)


def _makes_bundle(contenders: Sequence[Contender]) -> bool:
    faster = any(each.is_faster for each in contenders)
    return faster and any(each.backend == SERVABLE_BACKEND for each in contenders)
