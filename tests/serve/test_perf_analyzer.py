"""Triton's own perf_analyzer, unmodified, puts load on a server by gRPC and by HTTP."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest
from perf_analyzer import perf_analyzer

from .conftest import Launch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return perf_analyzer(tmp_path_factory.mktemp("perf_analyzer"))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_perf_analyzer_measures_a_text_model(
    launch: Launch, command: list[str], tmp_path: Path, protocol: str
) -> None:
    running = launch()
    port = running.server.port if protocol == "grpc" else running.server.metrics_port
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"data": [{"text": ["bank shares"]}, {"text": ["team wins"]}]}))
    report = tmp_path / "report.csv"
    done = subprocess.run(
        [
            *command, "-m", "news", "-u", f"127.0.0.1:{port}", "-i", protocol,
            "--input-data", texts, "-b", "2", "--concurrency-range", "3",
            "--request-count", "60", "-f", report,
        ],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = csv.DictReader(report.read_text().splitlines())
    assert row["Concurrency"] == "3"
    assert float(row["Inferences/Second"]) > 0
    answered = running.metric("edgewright_predictions_total", model="news")
    assert answered >= 120  # two texts a call; it may send some more
    assert running.metric("edgewright_rejected_total") == 0
