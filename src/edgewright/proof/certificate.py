"""From paired answers on the certify split to a verdict: what a variant loses, and how surely.

The reference is the fine-tuned model itself. A row counts as lost (b) when the reference answers it
rightly and the variant wrongly, as won (c) in the reverse case; the loss is p_b - p_c.
``edgewright.proof.bound`` bounds it; this module says what the bounds prove. Where the rows have no
labels, every answer that is not the reference's counts as lost: the bound is one on how often they
disagree, and no variant loses more accuracy than that.

At most ``SLOTS`` files may ever be tried on one certify split. Their error rates add up to what the
confidence leaves over, so that the chance that any of them passes wrongly stays below it
(Bonferroni, unequal shares): at 95% they are .03, .01 and .01, and the first file gets the most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from edgewright.bundle import Against, Certificate, Verdict
from edgewright.manifest import canonical_json, sha256_bytes, sha256_file
from edgewright.metrics import Labels
from edgewright.preprocess import Preprocessor
from edgewright.proof.bound import loss_lower_bound, loss_upper_bound, rows_needed

SHARES: Final = (3, 1, 1)  # of the error that the confidence leaves over, by slot
SLOTS: Final = len(SHARES)
# Beyond, a later slot's share is no more than the error of the bound's own interval (1e-5), and no
# number of rows would pass.
MOST_CONFIDENCE: Final = 0.9999
MOST_ROWS: Final = 100_000  # more than this is not worth counting to, nor labelling


@dataclass(frozen=True)
class Subject:
    """What a certificate binds: change one of these and it proves nothing.

    ``row_by_row`` is how the variant was run, and must be served: one row at a time. A bundle binds
    its preprocessing and its labels by its seal; a ledger outlives bundles, and one file may be
    tried with texts cut at 32 tokens and then at 256, or with its classes named in another order.
    """

    file_sha256: str
    runtime: str  # "onnxruntime 1.32.0"
    instruction_set: str  # edgewright.proof.host.instruction_set()
    row_by_row: bool
    session_options: tuple[tuple[str, str], ...] = ()  # sorted by name
    interface_sha256: str = ""  # empty in a ledger of one bundle, whose seal binds it

    def to_json(self) -> dict[str, Any]:
        """A JSON object; ``from_json`` is its inverse."""
        return {
            "file_sha256": self.file_sha256,
            "runtime": self.runtime,
            "instruction_set": self.instruction_set,
            "row_by_row": self.row_by_row,
            "session_options": dict(self.session_options),
            "interface_sha256": self.interface_sha256,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Subject:
        """The subject that ``to_json`` wrote."""
        options = tuple(sorted(value["session_options"].items()))
        return cls(**{**value, "session_options": options})


@dataclass(frozen=True)
class PairedCounts:
    """How often two models differ in being right, over ``n`` rows."""

    n: int
    lost: int  # b: the reference is right and the variant wrong
    won: int  # c: the reverse

    @classmethod
    def count(cls, labels: Labels, reference: Labels, variant: Labels) -> PairedCounts:
        """Count over label indices of shape (rows,): the truth, and what each model answered."""
        reference_right, variant_right = reference == labels, variant == labels
        return cls(
            n=len(labels),
            lost=int((reference_right & ~variant_right).sum()),
            won=int((~reference_right & variant_right).sum()),
        )

    @property
    def loss(self) -> float:
        """Share of rows lost less the share won; NaN without rows."""
        return (self.lost - self.won) / self.n if self.n else float("nan")

    def at(self, n: int) -> PairedCounts:
        """The counts to expect over ``n`` rows at these rates, rounded against the variant."""
        if not self.n:
            return PairedCounts(n=n, lost=0, won=0)
        return PairedCounts(n=n, lost=-(-self.lost * n // self.n), won=self.won * n // self.n)


@dataclass(frozen=True)
class Trial:
    """One file's turn on the certify split: its place in the order of trials, and its counts."""

    slot: int  # from 0; fixes the error rate
    counts: PairedCounts
    threads: int


def error_rates(confidence: float) -> tuple[float, ...]:
    """One-sided error rate of each slot; they add up to 1 - ``confidence``."""
    return tuple(round((1 - confidence) * share / sum(SHARES), 12) for share in SHARES)


def rows_to_pass(budget: float, error_rate: float) -> int | None:
    """Rows with which a variant that never differs from the reference passes; None: too many."""
    return rows_needed(0, 0, 1, budget, error_rate)


def interface_sha256(preprocessor: Preprocessor, labels: Sequence[str]) -> str:
    """Identity of what stands between a file and its answers: inputs made, outputs named."""
    with TemporaryDirectory(prefix="edgewright-interface-") as name:
        preprocessor.save(Path(name))
        files = {file.name: sha256_file(file) for file in Path(name).iterdir()}
    return sha256_bytes(canonical_json([files, list(labels)]))


def certify_sha256(ids: Sequence[str], labels: Sequence[str]) -> str:
    """Identity of a set of certify rows, whatever their order: their ids and class names."""
    return sha256_bytes(canonical_json(sorted(zip(ids, labels, strict=True))))


def certificate(
    trial: Trial,
    subject: Subject,
    *,
    budget: float,
    confidence: float,
    split_sha256: str,
    against: Against = Against.LABELS,
) -> Certificate:
    """What one trial proves about ``subject``: PASS, FAIL, or how many rows would be enough."""
    counts, error_rate = trial.counts, error_rates(confidence)[trial.slot]
    upper = loss_upper_bound(counts.lost, counts.won, counts.n, error_rate)
    lower = loss_lower_bound(counts.lost, counts.won, counts.n, error_rate)
    verdict, needed = Verdict.INCONCLUSIVE, None
    if upper <= budget:
        verdict = Verdict.PASS
    elif lower > budget:
        verdict = Verdict.FAIL
    else:
        needed = rows_needed(counts.lost, counts.won, counts.n, budget, error_rate, MOST_ROWS)
    return Certificate(
        verdict=verdict,
        budget=budget,
        error_rate=error_rate,
        n=counts.n,
        lost=counts.lost,
        won=counts.won,
        loss_upper_bound=upper,
        loss_lower_bound=lower,
        needed_n=needed,
        certify_sha256=split_sha256,
        against=against,
        file_sha256=subject.file_sha256,
        runtime=subject.runtime,
        instruction_set=subject.instruction_set,
        threads=trial.threads,
    )


def reused(
    subject: Subject,
    *,
    budget: float,
    threads: int,
    split_sha256: str,
    against: Against = Against.LABELS,
) -> Certificate:
    """The certificate of a file that came too late: no row was read for it, nothing is bounded."""
    return Certificate(
        verdict=Verdict.REUSED,
        budget=budget,
        error_rate=0.0,
        n=0,
        lost=0,
        won=0,
        loss_upper_bound=1.0,
        loss_lower_bound=-1.0,
        needed_n=None,
        certify_sha256=split_sha256,
        against=against,
        file_sha256=subject.file_sha256,
        runtime=subject.runtime,
        instruction_set=subject.instruction_set,
        threads=threads,
    )
