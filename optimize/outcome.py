"""What one run found out: the bundle, the report and the JSON object are all written from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgewright.backends.placement import Placement
from edgewright.bundle import Against, Certificate, Verdict
from edgewright.errors import AccuracyGateError, EdgewrightError, GateInconclusiveError
from edgewright.examples import Examples
from edgewright.latency import Timing
from edgewright.metrics import Labels, accuracy
from edgewright.optimize.choice import SERVABLE_BACKEND, Aim, Contender
from edgewright.optimize.config import SPEED, OptimizeConfig
from edgewright.optimize.graph_work import GraphWork
from edgewright.optimize.mixed_precision import Mixed
from edgewright.optimize.nearness import Nearness
from edgewright.optimize.words import between, rows_wanted
from edgewright.proof.host import Host


@dataclass(frozen=True, eq=False)
class Standing:
    """One candidate at the end of the run."""

    contender: Contender
    precision: str
    row_by_row: bool  # how it was searched, timed and certified, and must be served
    timing: Timing
    scores: NDArray[np.float32]  # (search rows, classes), softmax
    certificate: Certificate | None = None  # of the frozen ones only

    @property
    def name(self) -> str:
        """ "onnxruntime-int8-dynamic"."""
        return self.contender.name

    @property
    def p50_ms(self) -> dict[str, float]:
        """Median latency by shape, as "1x32"."""
        return self.timing.p50_ms

    @property
    def workload_ms(self) -> float:
        """The medians weighted by the workload's shares."""
        return self.timing.workload_ms

    @property
    def predicted(self) -> Labels:
        """Label indices of shape (search rows,)."""
        return np.asarray(self.scores.argmax(axis=1))


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run. ``search`` holds one row per near-duplicate group; certify rows are not kept."""

    config: OptimizeConfig
    made_from: Mapping[str, str]  # what the model came as -> its SHA-256
    search: Examples
    reference: Labels  # the model's answers on ``search``
    standings: tuple[Standing, ...]  # in the order in which they were made; the baseline first
    frozen: tuple[str, ...]  # names, in the order of their trials
    shipped: tuple[str, ...]  # names, best first; empty: nothing may ship
    chosen: str | None
    skipped: tuple[tuple[str, str], ...]  # what was not made or measured, and why
    certify_n: int
    workload: str
    host: Host
    seconds: Mapping[str, float]  # by stage
    mixed: tuple[Mixed, ...] = ()  # searches for layers to keep in float
    against: Against = Against.LABELS  # what the certify rows are held against
    search_against: Against = Against.LABELS  # on REFERENCE, ``search.labels`` are the model's
    graph_work: GraphWork | None = None
    gains: Mapping[str, Timing] = field(default_factory=dict)  # by pass, all up to it
    placements: Mapping[str, Placement] = field(default_factory=dict)  # by candidate
    nearness: Mapping[str, Nearness] = field(default_factory=dict)  # by variant of the bundle

    @property
    def baseline(self) -> Standing:
        """Fp32 on ONNX Runtime."""
        return self.standings[0]

    def standing(self, name: str) -> Standing:
        """The candidate of this name."""
        return next(each for each in self.standings if each.name == name)

    @property
    def aim(self) -> Aim:
        """What the run was for."""
        return Aim(self.baseline.contender, self.config.prefer)

    @property
    def tried(self) -> list[Standing]:
        """The candidates with a certificate, in the order of their trials."""
        return [self.standing(name) for name in self.frozen]

    @property
    def foremost(self) -> Standing | None:
        """Whom the verdict is about: the chosen one, or the one that came closest to shipping."""
        if self.chosen is not None:
            return self.standing(self.chosen)
        gains = [each for each in self.tried if self.aim.is_gain(each.contender)]
        return min(gains, key=_distance, default=None)

    def verdict(self, standing: Standing) -> str:
        """What became of a candidate, in a word or two: "PASS", "not faster", "not tried"."""
        if standing.certificate is not None:
            return standing.certificate.verdict.value
        if standing.name == self.baseline.name:
            return "baseline"
        if not standing.contender.is_faster:
            return "slower" if standing.contender.speedup_high < 1 else "not faster"
        return "not tried"

    def search_accuracy(self, standing: Standing) -> float:
        """Share of search rows that a candidate answers rightly."""
        return accuracy(self.search.labels, standing.predicted)

    def search_changed(self, standing: Standing) -> NDArray[np.intp]:
        """Search rows whose label is another than the model's, ascending."""
        return np.flatnonzero(self.reference != standing.predicted)

    @property
    def frontier(self) -> list[Standing]:
        """Who is beaten by no other in both speed and accuracy on search, the fastest first."""
        ranked = sorted(
            self.standings,
            key=lambda each: (-each.contender.speedup, -self.search_accuracy(each)),
        )
        found: list[Standing] = []
        for each in ranked:
            if not found or self.search_accuracy(each) > self.search_accuracy(found[-1]):
                found.append(each)
        return found

    def size_ratio(self, standing: Standing) -> float:
        """Its file's size as a share of the exported fp32 file's."""
        return standing.contender.size_bytes / self.baseline.contender.size_bytes

    def refusal(self) -> EdgewrightError:
        """The error that says why nothing ships: inconclusive where more rows could help."""
        verdicts = {each.certificate.verdict for each in self.tried if each.certificate}
        open_ends = verdicts & {Verdict.INCONCLUSIVE, Verdict.REUSED}
        kind = GateInconclusiveError if open_ends else AccuracyGateError
        return kind(f"{self.reason()}; the report is {self.config.rejected / 'report.html'}")

    def reason(self) -> str:
        """Why nothing ships, as a clause."""
        foremost = self.foremost
        if foremost is None or foremost.certificate is None:
            wanted = "faster" if self.config.prefer == SPEED else "smaller and not slower"
            return (
                f"no candidate is {wanted} than fp32 on ONNX Runtime at the workload "
                f"{self.workload} on this host, so there is nothing to certify"
            )
        given = foremost.certificate
        if given.verdict is Verdict.PASS:
            return (
                f"{foremost.name} passed, but no variant for {SERVABLE_BACKEND} did, and a bundle "
                f"needs one ({_verdicts(self.tried)}); more certify rows may decide it"
            )
        if given.verdict is Verdict.REUSED:
            return (
                f"the certify split has been used for other files, so it proves nothing of "
                f"{foremost.name}; bring fresh rows with `edgewright finetune --add`"
            )
        bounds = f"{foremost.name} {between(given)}"
        if given.verdict is Verdict.FAIL:
            return f"{bounds}; allow more with --max-drop, or train longer"
        return f"{bounds}; {rows_wanted(given)}, or accept it with --allow-inconclusive"


def _distance(standing: Standing) -> tuple[int, float, float]:
    """How far from shipping: by verdict, then by the rows or the loss that are in the way."""
    given = standing.certificate
    if given is None:
        return (9, 0.0, 0.0)
    order = [Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.REUSED, Verdict.FAIL]
    rows = float("inf") if given.needed_n is None else given.needed_n
    return (order.index(given.verdict), rows, given.loss_upper_bound)


def _verdicts(standings: list[Standing]) -> str:
    return ", ".join(
        f"{each.name} {each.certificate.verdict}" for each in standings if each.certificate
    )
