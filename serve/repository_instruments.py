"""What of the repository is not served as it says, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class RepositoryInstruments:
    """Metrics by model; the models are those of the repository, and none that a caller names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refused = Counter(
            "edgewright_refused_loads",
            "Versions that were tried and do not answer: files, proof, or memory.",
            ("model",),
            registry=registry,
        )
        self._problems = Gauge(
            "edgewright_model_problems",
            "What is not served as the repository says; model is empty where it cannot be read.",
            ("model",),
            registry=registry,
        )

    def refused(self, model: str) -> None:
        """A version of ``model`` was tried and does not answer."""
        self._refused.labels(model).inc()

    def problems(self, model: str, count: int) -> None:
        """So many there are now."""
        if model:  # there before the first one, so that it is an increase
            self._refused.labels(model)
        self._problems.labels(model).set(count)

    def forgotten(self, model: str) -> None:
        """The repository has no such model any more, and the server neither."""
        self._refused.remove_by_labels({"model": model})
        self._problems.remove_by_labels({"model": model})
