"""What the server counts and times, for Prometheus. Names begin with ``edgewright_``."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from edgewright import __version__
from edgewright.rpc_errors import REASONS
from edgewright.serve.admission import Queue
from edgewright.serve.call import Answer, BatchModel
from edgewright.serve.compute import Computed
from edgewright.serve.config import ServeConfig
from edgewright.serve.model_instruments import ModelInstruments
from edgewright.serve.models import ServedModel
from edgewright.serve.repository_instruments import RepositoryInstruments
from edgewright.serve.shadow_instruments import ShadowInstruments

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# Each is one of several packages, of which at most one is installed.
_RUNTIMES: Final = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
}


class Instruments:
    """The metrics of one server, in a registry of its own. Safe to use from any thread."""

    def __init__(self) -> None:
        # A series beside every counter and histogram that nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.models = ModelInstruments(self.registry)
        self.shadow = ShadowInstruments(self.registry)
        self.repository = RepositoryInstruments(self.registry)
        self._of_calls()
        self._of_queue()
        self._of_feedback()
        self._of_reloads()
        self._of_process()

    def watch(
        self,
        queue: Queue,
        in_flight: Callable[[], int],
        held_calls: Callable[[], int],
        config: ServeConfig,
    ) -> None:
        """Read these when they are asked for, and tell the limits of ``config`` beside them."""
        self.queue_rows.set_function(lambda: queue.rows)
        self.queue_wait_seconds.set_function(lambda: queue.wait_s(large=True))
        self.in_flight.set_function(in_flight)
        self.held_calls.set_function(held_calls)
        self.queue_rows_limit.set(config.queue_size)
        self.queue_wait_limit_seconds.set(config.max_wait_s)
        self.batch_rows_limit.set(config.max_batch)
        self.batch_tokens_limit.set(config.batch_tokens)

    def model_loaded(self, model: ServedModel) -> None:
        """``model`` answers from now on."""
        self.models.loaded(model, time.time())

    def model_unloaded(self, model: ServedModel) -> None:
        """``model`` answers no more."""
        if self.models.unloaded(model):
            self.shadow.unloaded(model.name, model.version)

    def reloaded(self, files: str, taken: bool) -> None:
        """Files have changed; whether what they say now is used."""
        self.reloads.labels(files, "taken" if taken else "refused").inc()

    def encoded(self, model: BatchModel, seconds: float) -> None:
        """A batch was tokenised."""
        if one := self.models.of(model):
            one.encoded(seconds)

    def decoded(self, model: BatchModel, seconds: float) -> None:
        """A call's images were decoded."""
        if one := self.models.of(model):
            one.decoded(seconds)

    def run_told(self, computed: Computed, postprocess_s: float) -> None:
        """The callers of a run's rows have their answers, so long after its scores."""
        if one := self.models.of(computed.model):
            one.run_told(computed, postprocess_s)

    def predicted(self, model: BatchModel, answers: Sequence[Answer]) -> None:
        """Rows of ``model`` were answered."""
        if one := self.models.of(model):
            one.predicted(answers)

    def items(self, model: BatchModel, counts: Mapping[str, int]) -> None:
        """So many items of a stream were told each status."""
        if one := self.models.of(model):
            one.items(counts)

    def not_finite(self, model: BatchModel) -> None:
        """A row had scores that are no numbers."""
        if one := self.models.of(model):
            one.not_finite()

    def feedback_committed(self, _entries: int, seconds: float) -> None:
        """One transaction of entries is durable."""
        self.feedback_commit_seconds.observe(seconds)

    def feedback_failed(self, entries: int) -> None:
        """The store refused one transaction of entries."""
        self.feedback_failed_entries.inc(entries)

    def predictions_logged(self, count: int) -> None:
        """These are in the store."""
        self.logged_predictions.labels("written").inc(count)

    def predictions_dropped(self, count: int, images: int) -> None:
        """These will never be; and of others the image will not."""
        self.logged_predictions.labels("dropped").inc(count)
        self.logged_predictions.labels("image_dropped").inc(images)

    def _of_calls(self) -> None:
        self.rejected = self._counter(
            "edgewright_rejected",
            "Calls refused or failed, by reason (google.rpc.ErrorInfo).",
            "reason",
        )
        for reason in REASONS:  # so that the first one is an increase
            self.rejected.labels(reason)
        self.ready = self._gauge("edgewright_ready", "1 when calls are answered, else 0.")
        self.in_flight = self._gauge("edgewright_requests_in_flight", "Calls being answered now.")
        self.held_calls = self._gauge(
            "edgewright_held_calls",
            "Calls without room in the queue, which wait for some or to be told of it.",
        )

    def _of_queue(self) -> None:
        self.queue_rows = self._gauge("edgewright_queue_rows", "Rows between admission and answer.")
        self.queue_rows_limit = self._gauge(
            "edgewright_queue_rows_limit", "The most that edgewright_queue_rows may be."
        )
        self.queue_wait_seconds = self._gauge(
            "edgewright_queue_wait_seconds", "Estimated time to compute all that waits."
        )
        self.queue_wait_limit_seconds = self._gauge(
            "edgewright_queue_wait_limit_seconds",
            "Calls are refused that would wait for longer, by the estimate.",
        )
        self.batch_rows_limit = self._gauge(
            "edgewright_batch_rows_limit", "The most rows that are computed together."
        )
        self.batch_tokens_limit = self._gauge(
            "edgewright_batch_tokens_limit", "The most tokens that are computed together."
        )

    def _of_feedback(self) -> None:
        self.feedback_entries = self._counter(
            "edgewright_feedback_entries",
            "Feedback entries acknowledged: stored, duplicate, unmatched (stored too), invalid.",
            "status",
        )
        self.feedback_failed_entries = self._counter(
            "edgewright_feedback_failed_entries",
            "Feedback entries that the store could not keep; their senders were told.",
        )
        self.feedback_commit_seconds = self._histogram(
            "edgewright_feedback_commit_seconds", "Duration of one transaction of feedback."
        )
        self.logged_predictions = self._counter(
            "edgewright_logged_predictions",
            "Predictions on their way into the store: written, or dropped for want of memory; "
            "image_dropped: of these the image alone, they are written too.",
            "outcome",
        )
        for outcome in ("written", "dropped", "image_dropped"):
            self.logged_predictions.labels(outcome)

    def _of_reloads(self) -> None:
        self.reloads = self._counter(
            "edgewright_reloads",
            "Changes to the files of TLS and tokens: taken, or refused (the log says why).",
            "files",
            "outcome",
        )
        for files in ("tls", "tokens"):
            for outcome in ("taken", "refused"):
                self.reloads.labels(files, outcome)
        self.certificate_expires = self._gauge(
            "edgewright_tls_certificate_expires_timestamp_seconds",
            "When the server's certificate, or one that it rests on, expires; 0 without TLS.",
        )

    def _of_process(self) -> None:
        self.event_loop_lag_seconds = self._histogram(
            "edgewright_event_loop_lag_seconds",
            "How much later than asked for the event loop woke a sleeper; measured twice a second.",
        )
        self.dropped_log_lines = self._counter(
            "edgewright_dropped_log_lines",
            "Lines of the log that were dropped because nobody read those before them.",
        )
        Info(
            "edgewright_build",
            "Versions of the server and of what it runs on.",
            registry=self.registry,
        ).info(_build())

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(name, help_text, registry=self.registry)

    def _histogram(self, name: str, help_text: str) -> Histogram:
        return Histogram(name, help_text, buckets=_SECONDS, registry=self.registry)


def _build() -> dict[str, str]:
    runtimes = {
        name: next(filter(None, map(_version, packages)), "")
        for name, packages in _RUNTIMES.items()
    }
    return {
        "version": __version__,
        "python": platform.python_version(),
        "grpc": _version("grpcio"),
        **runtimes,
    }


def _version(package: str) -> str:
    """Empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
