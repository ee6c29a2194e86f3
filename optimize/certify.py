"""The one moment when certify rows are read: the shortlist is frozen, its verdicts are untold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgewright.bundle import Against, Certificate
from edgewright.optimize.config import OptimizeConfig
from edgewright.proof.certificate import PairedCounts, Subject, certificate, reused
from edgewright.proof.ledger import Ledger


def certify(
    frozen: Sequence[str],
    subjects: Mapping[str, Subject],
    count: Callable[[Sequence[str]], Mapping[str, PairedCounts]],
    ledger: Ledger,
    config: OptimizeConfig,
    against: Against = Against.LABELS,
) -> dict[str, Certificate]:
    """A certificate for each frozen candidate, by name.

    Args:
        frozen: names, in the order of their trials.
        subjects: what each certificate binds, by name.
        count: runs candidates over the certify rows; called once, for those that take a new slot,
            and not at all where there is none.
        ledger: of the certify split, locked; holds the counts before this returns.
        config: budget, confidence and threads.
        against: what ``count`` holds answers against.
    """
    new: dict[Subject, str] = {}
    for name in frozen:
        if ledger.find(subjects[name]) is None and len(new) < ledger.free_slots:
            new.setdefault(subjects[name], name)
    if new:
        counts = count(list(new.values()))
        ledger.record(new, {subject: counts[name] for subject, name in new.items()}, config.threads)
    return {name: _certificate(subjects[name], ledger, config, against) for name in frozen}


def _certificate(
    subject: Subject, ledger: Ledger, config: OptimizeConfig, against: Against
) -> Certificate:
    trial = ledger.find(subject)
    if trial is None:
        return reused(
            subject,
            budget=config.max_drop,
            threads=config.threads,
            split_sha256=ledger.split_sha256,
            against=against,
        )
    return certificate(
        trial,
        subject,
        budget=config.max_drop,
        confidence=config.confidence,
        split_sha256=ledger.split_sha256,
        against=against,
    )
