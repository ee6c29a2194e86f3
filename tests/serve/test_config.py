from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgewright.errors import ConfigError
from edgewright.serve.config import ServeConfig


def test_the_defaults_hold() -> None:
    config = ServeConfig(Path("repository"))
    assert (config.port, config.metrics_port) == (8001, 8002)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"host": ""}, "--host"),
        ({"port": 65536}, "--port"),
        ({"metrics_port": -1}, "--metrics-port"),
        ({"port": 9000, "metrics_port": 9000}, "both 9000"),
        ({"threads": 0}, "--threads"),
        ({"instances": 0}, "--instances"),
        ({"max_batch": 0}, "--max-batch"),
        ({"batch_tokens": 0}, "--batch-tokens"),
        ({"threads": 1025}, "--threads is 1025; it must be 1 to 1024"),
        ({"instances": 1025}, "--instances is 1025; it must be 1 to 1024"),
        ({"max_batch": 4097}, "--max-batch is 4097; it must be 1 to 4096"),
        ({"batch_tokens": 2**20 + 1}, "--batch-tokens is 1048577; it must be 1 to 1048576"),
        ({"max_connection_age_s": 0.0}, "--max-connection-age is 0"),
        ({"max_wait_s": 0.0}, "--max-wait is 0.0; it must be above 0 seconds"),
        ({"max_texts": 0}, "--max-texts"),
        ({"queue_size": 10, "max_texts": 11}, "--queue-size is 10; it must be at least --max-t"),
        ({"max_rows_per_caller": 255}, "--max-rows-per-caller is 255; it must be at least --max-t"),
        ({"max_text_chars": 0}, "--max-text-chars"),
        ({"max_message_mb": 2048}, "--max-message-mb"),
        ({"drain_delay_s": -1.0}, "--drain-delay is -1"),
        ({"grace_s": float("nan")}, "--grace"),
        ({"otlp_endpoint": "localhost:4317"}, "--otlp-endpoint is localhost:4317; it must be http"),
        ({"otlp_endpoint": "http://collector:port"}, "--otlp-endpoint"),
        ({"trace_sample": 1.5}, "--trace-sample is 1.5; it must be 0 to 1"),
        ({"access_log": "some"}, "--access-log is some; it must be one of off, errors, all"),
        ({"remeasure": "often"}, "--remeasure is often; it must be one of auto, always, never"),
        ({"remeasure_seconds": 0.0}, "--remeasure-seconds is 0"),
    ],
)
def test_what_cannot_work_is_refused_by_its_option(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ServeConfig(Path("repository"), **options)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        ServeConfig(Path("repository"), port=-1, threads=0, max_batch=0)
    assert len(error.value.faults) == 3


def test_two_free_ports_may_both_be_asked_for() -> None:
    ServeConfig(Path("repository"), port=0, metrics_port=0)
