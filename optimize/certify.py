"""The one moment when certify rows are read: the shortlist is frozen, its verdicts are untold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from edgewright.bundle import Certificate
from edgewright.optimize.config import OptimizeConfig
from edgewright.proof.certificate import PairedCounts, Subject, certificate, reused
from edgewright.proof.ledger import Ledger


def certify(
    frozen: Iterable[str],
    subjects: Mapping[str, Subject],
    count: Callable[[str], PairedCounts],
    ledger: Ledger,
    config: OptimizeConfig,
) -> dict[str, Certificate]:
    """A certificate for each frozen candidate, by name.

    Args:
        frozen: names, in the order of their trials.
        subjects: what each certificate binds.
        count: runs a candidate over the certify rows; called for new trials only.
        ledger: of the certify split, locked.
        config: budget, confidence and threads.
    """
    certificates = {}
    for name in frozen:
        subject = subjects[name]
        trial = ledger.try_out(name, subject, config.threads, partial(count, name))
        if trial is None:
            certificates[name] = reused(
                subject,
                budget=config.max_drop,
                threads=config.threads,
                split_sha256=ledger.split_sha256,
            )
            continue
        certificates[name] = certificate(
            trial,
            subject,
            budget=config.max_drop,
            confidence=config.confidence,
            split_sha256=ledger.split_sha256,
        )
    return certificates
