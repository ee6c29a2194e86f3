"""The report of one run: the verdict first, then what it rests on. Certify rows are never shown."""

from __future__ import annotations

from edgewright.optimize.outcome import Outcome
from edgewright.optimize.report.candidates import candidates_section
from edgewright.optimize.report.certainty import certainty_section
from edgewright.optimize.report.changed import changed_section
from edgewright.optimize.report.circumstances import circumstances_section, threads_words
from edgewright.optimize.report.features import features_sections
from edgewright.optimize.report.losses import losses_section
from edgewright.optimize.report.mixed import mixed_section
from edgewright.optimize.report.placement import coverage_sections, placement_sections
from edgewright.optimize.report.speed import speed_section
from edgewright.optimize.report.verdict import headline
from edgewright.report import render_report


def optimize_report(outcome: Outcome, manifest_sha256: str) -> bytes:
    """The page as UTF-8 HTML. Its examples are from the search split."""
    shown = outcome.foremost or outcome.baseline
    return render_report(
        title=f"Optimised: {outcome.config.output.name}",
        subtitle=(
            f"{len(outcome.search.label_names)} classes, workload {outcome.workload}, "
            f"{threads_words(outcome)}, {outcome.host.cpu}"
        ),
        headline=headline(outcome),
        sections=[
            candidates_section(outcome),
            *placement_sections(outcome),
            speed_section(outcome, shown),
            *(mixed_section(each, outcome.search_against) for each in outcome.mixed),
            losses_section(outcome, shown),
            changed_section(outcome, shown),
            *features_sections(outcome),
            *coverage_sections(outcome, shown),
            certainty_section(outcome),
            circumstances_section(outcome),
        ],
        manifest_sha256=manifest_sha256,
    )
