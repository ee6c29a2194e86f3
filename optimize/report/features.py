"""How near the features of the variants in the bundle are to the model's."""

from __future__ import annotations

from collections.abc import Iterator

from edgewright.optimize.outcome import Outcome
from edgewright.report import DataTable, Section


def features_sections(outcome: Outcome) -> Iterator[Section]:
    """A table of cosines; nothing where the model gives no features."""
    if not outcome.nearness:
        return
    rows = [
        [name, f"{each.cosine_median:.4f}", f"{each.cosine_worst:.4f}"]
        for name, each in outcome.nearness.items()
    ]
    count = next(iter(outcome.nearness.values())).rows
    caption = (
        f"Cosine between a variant's features, what its head reads, and the model's on {count} "
        "search rows. No certificate speaks of them: it bounds the loss of labels alone."
    )
    yield Section("Features", [DataTable(["variant", "median", "worst"], rows, caption)])
