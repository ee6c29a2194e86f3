"""The host and the run that the figures hold for."""

from __future__ import annotations

from edgewright.optimize.outcome import Outcome
from edgewright.report import DataTable, Section


def circumstances_section(outcome: Outcome) -> Section:
    """The processor, the options that decide figures, where the model came from, and the time."""
    host, config = outcome.host, outcome.config
    facts = [
        ("processor", host.cpu),
        ("instruction set", host.instruction_set),
        ("cores", str(host.cores)),
        ("threads of a session", str(config.threads)),
        ("workload", outcome.workload),
        ("allowed loss", f"{config.max_drop:g}"),
        ("confidence", f"{config.confidence:g}"),
        ("preferred", config.prefer),
        *[(f"{what} SHA-256", sha256) for what, sha256 in outcome.made_from.items()],
        *[(f"seconds, {stage}", f"{seconds:.1f}") for stage, seconds in outcome.seconds.items()],
    ]
    return Section("Host and run", [DataTable(["fact", "value"], facts)])


def threads_words(outcome: Outcome) -> str:
    """As "1 thread" or "4 threads"."""
    count = outcome.config.threads
    return "1 thread" if count == 1 else f"{count} threads"
