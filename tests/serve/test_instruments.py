"""What is counted and timed, read as Prometheus reads it."""

from __future__ import annotations

import asyncio
import platform
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from prometheus_client.metrics import MetricWrapperBase

from edgewright import __version__
from edgewright.kinds import TEXT
from edgewright.repository import Repository
from edgewright.serve.batching import Batcher
from edgewright.serve.instruments import Instruments
from edgewright.serve.loop_lag import watch_loop
from edgewright.serve.models import ServedModel, load_model

from .bundles import LABELS, POISON
from .compute_fakes import BATCH, QUEUE, FakeModel
from .conftest import Gate, Launch, Running, until

README = Path(__file__).parents[2] / "README.md"
STAGES = ("queue", "preprocess", "compute", "postprocess")
NEWS = {"model": "news", "version": "1"}
METHOD = "edgewright.v1.PredictionService/ClassifyText"


def count(running: Running, name: str) -> float:
    return running.metric(f"edgewright_{name}_count", **NEWS)


def total(running: Running, name: str) -> float:
    return running.metric(f"edgewright_{name}_sum", **NEWS)


def test_every_stage_of_a_call_is_timed_and_they_add_up_to_less_than_the_call(
    launch: Launch,
) -> None:
    running = launch()
    for _ in range(5):
        running.classify("bank shares")
    assert [count(running, f"{stage}_seconds") for stage in STAGES] == [5] * 4
    stages = [total(running, f"{stage}_seconds") for stage in STAGES]
    assert all(seconds > 0 for seconds in stages)
    requests = running.metric("edgewright_request_seconds_sum", method=METHOD, **NEWS)
    assert sum(stages) < requests


class Clock:
    """Stands still until it is set."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FakeNews(FakeModel):
    """What ``Instruments`` asks of a served model, with scores that can be held."""

    version, kind, labels = 1, TEXT, LABELS
    variant = SimpleNamespace(name="fp32")
    runtime, verdict, chosen_by = "none", "PASS", "bundle"


def test_a_call_has_queued_from_its_admission_until_a_thread_takes_it() -> None:
    model, instruments, clock = FakeNews("news"), Instruments(), Clock()
    instruments.model_loaded(model)  # type: ignore[arg-type]

    async def scenario() -> None:
        batcher = Batcher(batch=BATCH, limit=QUEUE, observer=instruments, clock=clock)
        model.gate.clear()
        first = asyncio.create_task(batcher.classify(model, ["0"], None))
        await asyncio.to_thread(model.entered.wait, 20)
        clock.now_s += 1
        second = asyncio.create_task(batcher.classify(model, ["1"], None))
        await asyncio.sleep(0)  # it is admitted
        clock.now_s += 4
        model.gate.set()
        await asyncio.gather(first, second)
        await batcher.close()

    asyncio.run(scenario())
    sums = {
        stage: instruments.registry.get_sample_value(f"edgewright_{stage}_seconds_sum", NEWS)
        for stage in STAGES
    }
    assert sums == {"queue": 4, "preprocess": 0, "compute": 5, "postprocess": 0}


def test_batches_tell_their_rows_tokens_and_padding(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    running = launch(instances=1, batch_tokens=512)
    running.classify("bank shares", "goal")  # 4 and 3 tokens: one of padding, in one run
    assert (count(running, "batch_rows"), total(running, "batch_rows")) == (1, 2)
    assert total(running, "batch_tokens") == 8
    assert running.metric("edgewright_padding_tokens_total", **NEWS) == 1
    assert running.metric("edgewright_batch_rows_limit") == 32
    assert running.metric("edgewright_batch_tokens_limit") == 512


def test_the_queue_tells_what_waits_and_for_how_long(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    running = launch(queue_size=512, max_wait_s=3.0)
    running.classify("bank")  # from which the pace is known
    assert running.metric("edgewright_queue_wait_seconds") == 0
    held = gate()
    call = running.predictions.ClassifyText.future(running.request("bank", "goal"), timeout=30)
    assert held.entered.wait(60)
    assert running.metric("edgewright_queue_rows") == 2
    assert running.metric("edgewright_requests_in_flight") == 1
    assert running.metric("edgewright_queue_wait_seconds") > 0
    held.open.set()
    call.result()
    assert running.metric("edgewright_queue_rows_limit") == 512
    assert running.metric("edgewright_queue_wait_limit_seconds") == 3


def test_calls_are_counted_by_model_where_one_was_found(launch: Launch) -> None:
    running = launch()
    running.classify("bank")
    for text, model in (("bank", "nobody"), ("", "news"), (POISON, "news")):
        with pytest.raises(grpc.RpcError):
            running.classify(*([text] if text else []), model=model)
    requests = "edgewright_requests_total"
    assert running.metric(requests, code="OK", **NEWS) == 1
    assert running.metric(requests, code="INVALID_ARGUMENT", **NEWS) == 1
    # A failed call is told of before it is counted.
    until(lambda: running.metric(requests, code="INTERNAL", **NEWS) == 1)
    assert running.metric(requests, code="NOT_FOUND", model="", version="") == 1
    assert running.metric("edgewright_not_finite_rows_total", **NEWS) == 1


def test_the_build_tells_the_versions_of_what_runs(launch: Launch) -> None:
    labels = {
        "version": __version__,
        "python": platform.python_version(),
        "grpc": version("grpcio"),
        "onnxruntime": version("onnxruntime"),
    }
    assert launch(load=False).metric("edgewright_build_info", **labels) == 1


def test_counters_that_alerts_ask_for_are_there_before_anything_happened(launch: Launch) -> None:
    running = launch()
    names = {
        (sample.name, sample.labels.get("reason", ""))
        for metric in running.server.instruments.registry.collect()
        for sample in metric.samples
    }
    assert ("edgewright_rejected_total", "QUEUE_FULL") in names
    assert ("edgewright_not_finite_rows_total", "") in names
    assert ("edgewright_feedback_failed_entries_total", "") in names


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Metric -> its kind and labels, by README's table."""
    found = {}
    for line in README.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `edgewright_") and len(cells) == 3:
            kind, _, labels = cells[1].partition(": ")
            for name in re.findall("`([a-z_]+)`", cells[0]):
                found[name] = (kind, tuple(labels.split(", ") if labels else ()))
    return found


def test_the_table_in_readme_is_the_registry() -> None:
    registered = {}
    for metric in collectors(Instruments()):
        kind, name = metric._type, metric._name
        suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
        labels = tuple(metric._labelnames)
        if kind == "info":
            labels = tuple(metric._value)
        registered[name + suffix] = (kind, labels)
        assert metric._documentation.endswith(".")
    assert documented() == registered


def collectors(instruments: Instruments) -> list[MetricWrapperBase]:
    every = instruments.registry._collector_to_names
    return [each for each in every if isinstance(each, MetricWrapperBase)]


def loaded(repository: Path) -> ServedModel:
    return load_model(Repository(repository), "news", 1, threads=1, max_batch=1)


def series(instruments: Instruments, version: str) -> set[str]:
    return {
        sample.name
        for metric in instruments.registry.collect()
        for sample in metric.samples
        if sample.labels.get("version") == version and "model" in sample.labels
    }


def test_a_model_that_is_unloaded_takes_its_series_along(repository: Path) -> None:
    instruments = Instruments()
    old = loaded(repository)
    new = replace(old, version=2)
    for model in (old, new):
        instruments.model_loaded(model)
        instruments.models.call_ended(METHOD, "OK", model, 0.1)
    before = series(instruments, "2")
    assert "edgewright_request_seconds_bucket" in before
    instruments.model_unloaded(old)
    assert series(instruments, "1") == set()
    assert series(instruments, "2") == before
    # A call of it that ends late is counted, but not as that model's.
    instruments.models.call_ended(METHOD, "OK", old, 0.1)
    instruments.encoded(old, 0.1)
    assert series(instruments, "1") == set()
    assert instruments.registry.get_sample_value(
        "edgewright_requests_total", {"method": METHOD, "code": "OK", "model": "", "version": ""}
    )


def test_a_version_loaded_anew_keeps_its_series_when_its_forerunner_goes(repository: Path) -> None:
    instruments = Instruments()
    first = loaded(repository)
    again = replace(first, verdict="UNVERIFIED")
    instruments.model_loaded(first)
    instruments.model_loaded(again)
    instruments.model_unloaded(first)
    (info,) = (
        sample.labels["verdict"]
        for metric in instruments.registry.collect()
        for sample in metric.samples
        if sample.name == "edgewright_model_info"
    )
    assert info == "UNVERIFIED"
    instruments.models.call_ended(METHOD, "OK", again, 0.1)
    assert "edgewright_requests_total" in series(instruments, "1")


def test_a_loop_that_is_held_up_tells_by_how_much() -> None:
    async def scenario() -> list[float]:
        lags: list[float] = []
        told = asyncio.Event()

        def observe(lag: float) -> None:
            lags.append(lag)
            told.set()

        loop = asyncio.get_running_loop()
        watch = asyncio.create_task(watch_loop(observe, every_s=0.01))
        await asyncio.sleep(0)
        until_s = loop.time() + 0.2
        while loop.time() < until_s:
            pass
        await told.wait()
        watch.cancel()
        return lags

    assert asyncio.run(scenario())[0] >= 0.1
