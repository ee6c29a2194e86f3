"""What is counted and timed of each model: by name and version, and gone once it is unloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from edgewright.kinds import TEXT
from edgewright.serve.call import Answer, BatchModel
from edgewright.serve.compute import Computed
from edgewright.serve.models import ServedModel

_REQUEST_SECONDS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_STAGE_SECONDS: Final = (0.0001, 0.00025, 0.0005, *_REQUEST_SECONDS[:-1])
_RUN_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_RUN_TOKENS: Final = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class ModelInstruments:
    """The metrics that bear a model's name and version. Safe to use from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._metrics: list[Counter | Gauge | Histogram] = []
        self._of: dict[BatchModel, OneModel] = {}
        self._ends: dict[tuple[str, str, BatchModel | None], tuple[Counter, Histogram]] = {}
        self._messages: dict[tuple[str, BatchModel | None], Histogram] = {}
        self._of_calls()
        self._of_stages()
        self._of_batches()
        self._of_versions()

    def loaded(self, model: ServedModel, timestamp: float) -> None:
        """``model`` answers from now on; ``timestamp`` is Unix time, in seconds."""
        named = {"model": model.name, "version": str(model.version)}
        self.info.remove_by_labels(named)  # of the same version, loaded before
        self.info.labels(
            **named,
            variant=model.variant.name,
            runtime=model.runtime,
            verdict=model.verdict,
            chosen_by=model.chosen_by,
        ).set(1)
        self.loaded_at.labels(**named).set(timestamp)
        self._of[model] = OneModel(self, model)

    def unloaded(self, model: ServedModel) -> bool:
        """``model`` answers no more: its series end, unless its version was loaded anew.

        Whether they have ended.
        """
        self._of.pop(model, None)
        self._ends = {key: ends for key, ends in self._ends.items() if key[-1] is not model}
        self._messages = {key: one for key, one in self._messages.items() if key[-1] is not model}
        gone = {"model": model.name, "version": str(model.version)}
        if any({"model": each.name, "version": each.version} == gone for each in self._of.values()):
            return False
        for metric in self._metrics:
            metric.remove_by_labels(gone)
        return True

    def of(self, model: BatchModel) -> OneModel | None:
        """The series of a model that is loaded."""
        return self._of.get(model)

    def call_ended(
        self,
        method: str,
        code: str,
        model: BatchModel | None,
        seconds: float | None = None,
        trace_id: str = "",
    ) -> None:
        """A call of ``method`` ended; ``seconds`` are told of what has an answer, not a stream's.

        ``model`` is None where no model was found for it. Its trace, if any, is an exemplar.
        """
        try:
            count, duration = self._ends[method, code, model]
        except KeyError:
            count, duration = self._ends_of(method, code, model)
        count.inc()
        if seconds is not None:
            duration.observe(seconds, {"trace_id": trace_id} if trace_id else None)

    def message_answered(
        self, method: str, model: BatchModel | None, seconds: float, trace_id: str
    ) -> None:
        """A message of a stream was answered; ``model`` is None where it is of none."""
        duration = self._messages.get((method, model))
        if duration is None:
            one = self._of.get(model) if model is not None else None
            named = (one.name, one.version) if one else ("", "")
            duration = self.message_seconds.labels(method, *named)
            if model is None or one is not None:
                self._messages[method, model] = duration
        duration.observe(seconds, {"trace_id": trace_id} if trace_id else None)

    def _ends_of(
        self, method: str, code: str, model: BatchModel | None
    ) -> tuple[Counter, Histogram]:
        """Looked up once: ``labels`` takes a lock and makes strings each time."""
        one = self._of.get(model) if model is not None else None
        name, version = (one.name, one.version) if one else ("", "")
        series = (
            self.requests.labels(method, code, name, version),
            self.request_seconds.labels(method, name, version),
        )
        if model is None or one is not None:
            self._ends[method, code, model] = series
        return series

    def _of_calls(self) -> None:
        self.requests = self._counter(
            "edgewright_requests",
            "Calls ended, by method, gRPC code and model; model is empty where none was found.",
            *("method", "code", "model", "version"),
        )
        self.request_seconds = self._histogram(
            "edgewright_request_seconds",
            "From a call's arrival to its answer, without the wait of a refusal; not of streams.",
            *("method", "model", "version"),
            buckets=_REQUEST_SECONDS,
        )
        self.message_seconds = self._histogram(
            "edgewright_stream_message_seconds",
            "From the reading of a message of a stream until its answer is ready.",
            *("method", "model", "version"),
            buckets=_REQUEST_SECONDS,
        )
        self.items = self._counter(
            "edgewright_stream_items",
            "Items of StreamClassify by what their caller was told: answered, invalid, failed.",
            *("model", "version", "status"),
        )

    def _of_stages(self) -> None:
        def stage(name: str, help_text: str) -> Histogram:
            return self._histogram(
                f"edgewright_{name}_seconds",
                help_text,
                *("model", "version"),
                buckets=_STAGE_SECONDS,
            )

        self.queue_seconds = stage(
            "queue", "A call's wait from admission to compute, without the decoding of its images."
        )
        self.preprocess_seconds = stage(
            "preprocess", "Tokenising the texts of a batch, or decoding the images of a call."
        )
        self.compute_seconds = stage("compute", "The model's run over rows put together.")
        self.postprocess_seconds = stage(
            "postprocess", "From a run's scores until its callers' answers are handed over."
        )

    def _of_batches(self) -> None:
        named = ("model", "version")
        self.batch_rows = self._histogram(
            "edgewright_batch_rows",
            "Rows computed together in one run.",
            *named,
            buckets=_RUN_ROWS,
        )
        self.batch_tokens = self._histogram(
            "edgewright_batch_tokens",
            "Tokens of texts computed together in one run, with their padding.",
            *named,
            buckets=_RUN_TOKENS,
        )
        self.padding_tokens = self._counter(
            "edgewright_padding_tokens", "Those of edgewright_batch_tokens that pad.", *named
        )
        self.not_finite_rows = self._counter(
            "edgewright_not_finite_rows", "Rows for which a model gave NaN or infinity.", *named
        )
        self.predictions = self._counter(
            "edgewright_predictions", "Rows answered, by their best class.", *named, "label"
        )

    def _of_versions(self) -> None:
        named = ("model", "version")
        self.info = self._gauge(
            "edgewright_model_info",
            "1 for each model served; what it is stands in the labels.",
            *(*named, "variant", "runtime", "verdict", "chosen_by"),
        )
        self.loaded_at = self._gauge(
            "edgewright_model_loaded_timestamp_seconds", "Unix time at which it was loaded.", *named
        )

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return self._kept(Counter(name, help_text, labels, registry=self._registry))

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return self._kept(Gauge(name, help_text, labels, registry=self._registry))

    def _histogram(
        self, name: str, help_text: str, *labels: str, buckets: Sequence[float]
    ) -> Histogram:
        made = Histogram(name, help_text, labels, buckets=buckets, registry=self._registry)
        return self._kept(made)

    def _kept(self, metric: Metric) -> Metric:
        self._metrics.append(metric)
        return metric


class OneModel:
    """The series of one model, looked up once; they are there, at 0, from its first answer on."""

    def __init__(self, metrics: ModelInstruments, model: ServedModel) -> None:
        self.name, self.version = named = (model.name, str(model.version))
        self._is_text = model.kind is TEXT
        self._queue = metrics.queue_seconds.labels(*named)
        self._preprocess = metrics.preprocess_seconds.labels(*named)
        self._compute = metrics.compute_seconds.labels(*named)
        self._postprocess = metrics.postprocess_seconds.labels(*named)
        self._rows = metrics.batch_rows.labels(*named)
        if self._is_text:
            self._tokens = metrics.batch_tokens.labels(*named)
            self._padding = metrics.padding_tokens.labels(*named)
        self._not_finite = metrics.not_finite_rows.labels(*named)
        self._items = {
            status: metrics.items.labels(*named, status)
            for status in ("answered", "invalid", "failed")
        }
        self._predictions = metrics.predictions
        self._labels = model.labels
        self._by_class: dict[int, Counter] = {}

    def encoded(self, seconds: float) -> None:
        """A batch was tokenised."""
        if self._is_text:  # images arrive decoded
            self._preprocess.observe(seconds)

    def decoded(self, seconds: float) -> None:
        """A call's images were decoded."""
        self._preprocess.observe(seconds)

    def run_told(self, computed: Computed, postprocess_s: float) -> None:
        """The callers of a run's rows have their answers."""
        run = computed.run
        if run is None:
            return
        self._compute.observe(run.ended - run.started)
        self._postprocess.observe(postprocess_s)
        self._rows.observe(len(computed.rows))
        if self._is_text:
            self._tokens.observe(run.padded_tokens)
            if run.padded_tokens > run.tokens:
                self._padding.inc(run.padded_tokens - run.tokens)
        for row in computed.rows:
            if row.place == 0:  # once for a call; its first row is computed first
                self._queue.observe(run.batch.taken - row.call.admitted - row.call.decode_s)

    def items(self, counts: Mapping[str, int]) -> None:
        """So many items of a stream were told each status."""
        for status, count in counts.items():
            self._items[status].inc(count)

    def not_finite(self) -> None:
        """A row had scores that are no numbers."""
        self._not_finite.inc()

    def predicted(self, answers: Sequence[Answer]) -> None:
        """These were answered."""
        for answer in answers:
            best = answer.classes[0]
            count = self._by_class.get(best)
            if count is None:
                label = self._labels[best]
                count = self._predictions.labels(self.name, self.version, label)
                self._by_class[best] = count
            count.inc()
