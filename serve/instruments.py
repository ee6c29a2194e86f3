"""What the server counts and times, for Prometheus. Names begin with ``edgewright_``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
)

from edgewright import __version__
from edgewright.serve.models import ServedModel

_REQUEST_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_RUN_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_RUN_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class Instruments:
    """The metrics of one server, in a registry of its own. Safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        registry = self.registry
        self.requests = Counter(
            "edgewright_requests",
            "Calls answered, by method and gRPC code.",
            ["method", "code"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "edgewright_request_seconds",
            "From a call's arrival to its answer.",
            ["method"],
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self.rejected = Counter(
            "edgewright_rejected",
            "Calls refused or failed, by reason (google.rpc.ErrorInfo).",
            ["reason"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "edgewright_requests_in_flight", "Calls being answered now.", registry=registry
        )
        self.queue_rows = Gauge(
            "edgewright_queue_rows", "Rows between admission and answer.", registry=registry
        )
        self.batch_rows = Histogram(
            "edgewright_batch_rows",
            "Rows computed together in one run.",
            ["model"],
            buckets=_RUN_ROWS,
            registry=registry,
        )
        self.compute_seconds = Histogram(
            "edgewright_compute_seconds",
            "Duration of one run.",
            ["model"],
            buckets=_RUN_SECONDS,
            registry=registry,
        )
        self.not_finite_rows = Counter(
            "edgewright_not_finite_rows",
            "Rows for which a model gave NaN or infinity.",
            ["model"],
            registry=registry,
        )
        self.predictions = Counter(
            "edgewright_predictions",
            "Rows answered, by model and label.",
            ["model", "label"],
            registry=registry,
        )
        self.feedback_entries = Counter(
            "edgewright_feedback_entries",
            "Feedback entries acknowledged: stored, duplicate, unmatched (stored too), invalid.",
            ["status"],
            registry=registry,
        )
        self.feedback_failed_entries = Counter(
            "edgewright_feedback_failed_entries",
            "Feedback entries that the store could not keep; their senders were told.",
            registry=registry,
        )
        self.feedback_commit_seconds = Histogram(
            "edgewright_feedback_commit_seconds",
            "Duration of one transaction of feedback.",
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self.logged_predictions = Counter(
            "edgewright_logged_predictions",
            "Predictions on their way into the store: written, or dropped for want of memory.",
            ["outcome"],
            registry=registry,
        )
        self.ready = Gauge(
            "edgewright_ready", "1 when calls are answered, else 0.", registry=registry
        )
        self.model_info = Gauge(
            "edgewright_model_info",
            "1 for each model served; what it is stands in the labels.",
            ["model", "version", "variant", "runtime", "verdict", "chosen_by"],
            registry=registry,
        )
        # Looked up for every call and row: ``labels`` takes a lock and makes strings each time.
        self.answered = cache(self.requests.labels)
        self.predicted = cache(self.predictions.labels)
        Info("edgewright_build", "The server's version.", registry=registry).info(
            {"version": __version__}
        )

    def watch(self, *, queue_rows: Callable[[], int], in_flight: Callable[[], int]) -> None:
        """Read these when they are asked for."""
        self.queue_rows.set_function(queue_rows)
        self.in_flight.set_function(in_flight)

    def model_loaded(self, model: ServedModel) -> None:
        """Say which model answers."""
        self.model_info.labels(
            model.name,
            str(model.version),
            model.variant.name,
            model.runtime,
            model.verdict,
            model.chosen_by,
        ).set(1)

    def run_done(self, model: str, rows: int, seconds: float) -> None:
        """``rows`` were computed together."""
        self.batch_rows.labels(model).observe(rows)
        self.compute_seconds.labels(model).observe(seconds)

    def not_finite(self, model: str) -> None:
        """A row had scores that are no numbers."""
        self.not_finite_rows.labels(model).inc()

    def feedback_committed(self, _entries: int, seconds: float) -> None:
        """One transaction of entries is durable."""
        self.feedback_commit_seconds.observe(seconds)

    def feedback_failed(self, entries: int) -> None:
        """The store refused one transaction of entries."""
        self.feedback_failed_entries.inc(entries)

    def predictions_logged(self, count: int) -> None:
        """These are in the store."""
        self.logged_predictions.labels("written").inc(count)

    def predictions_dropped(self, count: int) -> None:
        """These will never be."""
        self.logged_predictions.labels("dropped").inc(count)
