"""What a candidate's speed comes from: the runtime, graph work, bf16, int8.

Each file is made from the one before it: fp32, fp32 after graph work, that in bf16, that in int8.
So a step's factor is the ratio of two measured candidates on one runtime, and the product of all
steps is the candidate's own ratio to fp32 on ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from edgewright.latency import mean_ratio_interval
from edgewright.optimize.outcome import Outcome, Standing

_CONFIDENCE: Final = 0.95
_GRAPH: Final = "fp32-graph"


@dataclass(frozen=True)
class GainStep:
    """How many times faster one thing made a candidate; without restarts there is no interval."""

    source: str  # "runtime", "graph work", "bf16", "int8"; with " and " where none stands between
    candidate: str  # the first that has it
    factor: float
    interval: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "source": self.source,
            "candidate": self.candidate,
            "factor": self.factor,
            "interval": None if self.interval is None else list(self.interval),
        }


def gain_steps(outcome: Outcome, standing: Standing) -> list[GainStep]:
    """The steps from fp32 on ONNX Runtime to ``standing``; none for that file itself.

    A candidate on the way that was not measured leaves its step to the next, which names both.
    """
    known = {each.name: each for each in outcome.standings}
    steps: list[GainStep] = []
    before, unmeasured = outcome.baseline, []
    for source, name in _way(outcome, standing):
        reached = known.get(name)
        if reached is None:
            unmeasured.append(source)
            continue
        added = " and ".join([*unmeasured, source])
        if before is outcome.baseline:
            timing = reached.timing
            interval = (timing.ratio_low, timing.ratio_high)
            steps.append(GainStep(added, reached.name, timing.ratio, interval))
        else:
            steps.append(GainStep(added, reached.name, *ratio_between(before, reached)))
        before, unmeasured = reached, []
    return steps


def _way(outcome: Outcome, standing: Standing) -> Iterator[tuple[str, str]]:
    """What is added, and the candidate that then has it."""
    backend = standing.contender.backend
    kind = standing.name.removeprefix(f"{backend}-")
    if backend != outcome.baseline.contender.backend:
        yield "runtime", f"{backend}-fp32"
    if kind == "fp32":
        return
    if outcome.graph_work is not None and outcome.graph_work.applied:
        yield "graph work", f"{backend}-{_GRAPH}"
    if kind == _GRAPH:
        return
    bf16 = f"{backend}-bf16"
    if kind.startswith("int8") and any(each.name == bf16 for each in outcome.standings):
        yield "bf16", bf16
    yield kind.partition("-")[0], standing.name


def ratio_between(before: Standing, reached: Standing) -> tuple[float, tuple[float, float] | None]:
    """How many times as fast ``reached`` is as ``before``, with its interval where there is one.

    Each restart compared both with the baseline of its own.
    """
    mine, theirs = reached.timing.ratios, before.timing.ratios
    if len(mine) == len(theirs) > 1:
        quotients = [ours / other for ours, other in zip(mine, theirs, strict=True)]
        factor, low, high = mean_ratio_interval(quotients, _CONFIDENCE)
        return factor, (low, high)
    return reached.timing.ratio / before.timing.ratio, None
