"""Which candidates may see the certify split, and which of those that passed is served.

A contender is a file on a runtime that has been searched and timed. The shortlist is frozen before
any certify row is read, and its order decides the error rates, so its rules are coarse on purpose:
measurements move by a few percent from run to run (fresh processes were seen to differ by 7%), and
the list should not. Speeds within ``SPEED_STEP`` of each other count as equal; among equals the one
that lost fewer search rows, then the smaller file, then the name, goes first. Where size is
preferred, files within ``SIZE_STEP`` of each other count as equally small, and among these the same
order holds. A file that already has a trial in the ledger keeps its place in it: to look at its
counts again costs no row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgewright.bundle import Certificate, Verdict
from edgewright.optimize.config import SIZE, SPEED
from edgewright.proof.bound import loss_lower_bound, meets_budget
from edgewright.proof.certificate import SLOTS, PairedCounts, error_rates

SPEED_STEP: Final = 1.10
SIZE_STEP: Final = 1.02
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
class Aim:
    """What a run is for: "speed", or "size" among those that are not slower than fp32."""

    baseline: Contender  # fp32 on ONNX Runtime
    prefer: str = SPEED

    def is_gain(self, contender: Contender) -> bool:
        """Whether to serve it in place of fp32 gains what is preferred."""
        if self.prefer == SIZE:
            return contender.speedup >= 1 and contender.size_bytes < self.baseline.size_bytes
        return contender.is_faster

    def best_first(self, contenders: Sequence[Contender]) -> list[Contender]:
        """By measured speed; where size is preferred, by class of size and then by speed."""
        size_class = _size_classes(contenders)
        if self.prefer == SIZE:
            return sorted(contenders, key=lambda each: (size_class[each.name], -each.speedup))
        return sorted(contenders, key=lambda each: -each.speedup)


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


def rank(contenders: Sequence[Contender], budget: float, prefer: str = SPEED) -> list[Contender]:
    """Best first: within the budget on search, then by speed class, search loss, size and name.

    Where size is preferred, the class of size comes before that of speed.
    """
    speed_class = _classes(contenders, lambda each: each.speedup, SPEED_STEP)
    size_class = _size_classes(contenders) if prefer == SIZE else {}
    return sorted(
        contenders,
        key=lambda each: (
            each.search.loss > budget,
            size_class.get(each.name, 0),
            speed_class[each.name],
            each.search.loss,
            each.size_bytes,
            each.name,
        ),
    )


def _size_classes(contenders: Sequence[Contender]) -> dict[str, int]:
    return _classes(contenders, lambda each: 1 / each.size_bytes, SIZE_STEP)


def _classes(
    contenders: Sequence[Contender], merit: Callable[[Contender], float], step: float
) -> dict[str, int]:
    """Class by name, the best 0: those whose merit is within ``step`` of the best in it."""
    found: dict[str, int] = {}
    place, leader = -1, float("inf")
    for contender in sorted(contenders, key=lambda each: (-merit(each), each.name)):
        if merit(contender) * step < leader:
            place, leader = place + 1, merit(contender)
        found[contender.name] = place
    return found


def shortlist(
    contenders: Sequence[Contender],
    aim: Aim,
    rules: Rules,
    tried: Collection[str] = (),
    free_slots: int = SLOTS,
) -> list[Contender]:
    """At most ``SLOTS`` contenders, in the order in which they are certified.

    Only what gains over the baseline is worth a trial; where speed is preferred, what is faster by
    less than ``SPEED_STEP`` is so only where nothing else is. One that search has shown to lose too
    much is left out, unless nothing better is there: then the best such gets its verdict. A
    list with a runtime that `edgewright[serve]` does not bring must hold one likely to pass on
    ONNX Runtime, or else the baseline itself, so that the bundle can be served by it.

    Args:
        contenders: every candidate but the baseline.
        aim: what is preferred, and the baseline.
        rules: budget, confidence and the rows of the certify split.
        tried: names that have a trial in the ledger; they come first.
        free_slots: trials that the ledger has left; who comes after them will be REUSED.
    """
    gains = rank([each for each in contenders if aim.is_gain(each)], rules.budget, aim.prefer)
    if aim.prefer == SPEED:
        gains = [each for each in gains if each.speedup >= SPEED_STEP] or gains
    hopeful = [each for each in gains if not rules.is_hopeless(each)] or gains[:1]
    known = [each for each in hopeful if each.name in tried]
    chosen = (known + [each for each in hopeful if each.name not in tried])[:SLOTS]
    if all(each.backend == SERVABLE_BACKEND for each in chosen):
        return chosen
    servable = [each for each in hopeful if each.backend == SERVABLE_BACKEND]
    likely = next((each for each in servable if rules.is_likely(each)), aim.baseline)
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
    aim: Aim,
    *,
    allow_inconclusive: bool,
) -> list[Contender]:
    """What may go into the bundle, best first: empty when no bundle can be made of it.

    A bundle needs one that gains over the baseline, and one for ONNX Runtime. Those that passed
    come first; with ``allow_inconclusive``, and only where they are not enough, the INCONCLUSIVE
    ones come along. FAIL and REUSED never do.
    """

    def of(verdict: Verdict) -> list[Contender]:
        found = [each for each in frozen if certificates[each.name].verdict is verdict]
        return aim.best_first(found)

    passed = of(Verdict.PASS)
    if _makes_bundle(passed, aim):
        return passed
    allowed = passed + of(Verdict.INCONCLUSIVE)
    return allowed if allow_inconclusive and _makes_bundle(allowed, aim) else []


def choose(shipped: Sequence[Contender], aim: Aim) -> Contender:
    """The one to serve from what ``shippable`` gave: the first that gains over the baseline."""
    return next(each for each in shipped if aim.is_gain(each))


def _makes_bundle(contenders: Sequence[Contender], aim: Aim) -> bool:
    gain = any(aim.is_gain(each) for each in contenders)
    return gain and any(each.backend == SERVABLE_BACKEND for each in contenders)
