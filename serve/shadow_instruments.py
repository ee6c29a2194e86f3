"""What comparing a shadow version with the current one gave, for Prometheus."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

_PAIR: Final = ("model", "version", "shadow_version")
_DIFFERENCES: Final = (0.0001, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class ShadowInstruments:
    """Metrics by pair of versions. Safe to use from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rows = Counter(
            "edgewright_shadow_rows",
            "Copied rows: agreed or differed in their best class, failed, or dropped under load.",
            (*_PAIR, "outcome"),
            registry=registry,
        )
        self.score_difference = Histogram(
            "edgewright_shadow_score_difference",
            "Between both versions' scores of the class that was answered.",
            _PAIR,
            buckets=_DIFFERENCES,
            registry=registry,
        )
        self.compute_seconds = Histogram(
            "edgewright_shadow_compute_seconds",
            "The shadow's work on one row, tokenising or decoding among it.",
            ("model", "shadow_version"),
            buckets=_SECONDS,
            registry=registry,
        )

    def unloaded(self, model: str, version: int) -> None:
        """This version answers no more, nor gets copies: the series of its pairs end."""
        as_shadow = {"model": model, "shadow_version": str(version)}
        self.compute_seconds.remove_by_labels(as_shadow)
        for metric in (self.rows, self.score_difference):
            metric.remove_by_labels(as_shadow)
            metric.remove_by_labels({"model": model, "version": str(version)})
