"""The alert rules and the dashboard in deploy/, held against a page that a server really answered."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from edgewright.repository import Repository
from edgewright.v1.feedback_pb2 import FeedbackEntry, SendFeedbackRequest
from edgewright.v1.feedback_pb2_grpc import FeedbackServiceStub
from edgewright.v1.prediction_pb2 import StreamClassifyRequest, StreamItem

from .bundles import POISON
from .conftest import Launch, until
from .promql import named

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = DEPLOY / "grafana" / "edgewright.json"
# Prometheus adds these to what it scrapes.
OF_PROMETHEUS = {"job", "instance"}

Page = dict[str, set[str]]


@pytest.fixture
def page(launch: Launch, bundle: Path, tmp_path: Path) -> Page:
    """Sample name -> its labels, of a server that answered, refused, failed, stored, compared."""
    repository = Repository(tmp_path / "repository")
    for _ in range(2):
        repository.publish(bundle, "news", keep_current=True)
    repository.set_traffic("news", None, 2)
    running = launch(repository.path, feedback=f"sqlite:///{tmp_path / 'feedback.db'}")
    (answer,) = running.classify("bank shares rises").classifications
    running.classify("bank", "goal")
    for text in (POISON, ""):
        with pytest.raises(grpc.RpcError):
            running.classify(text)
    streamed = StreamClassifyRequest(items=[StreamItem(text="bank"), StreamItem(text="")])
    list(running.predictions.StreamClassify(iter([streamed]), timeout=30))
    entry = FeedbackEntry(entry_id="1", prediction_id=answer.prediction_id, label="sport")
    FeedbackServiceStub(running.channel).SendFeedback(SendFeedbackRequest(entries=[entry]))
    pair = {"model": "news", "version": "1", "shadow_version": "2"}
    until(lambda: running.metric("edgewright_shadow_rows_total", **pair, outcome="agreed") == 4)
    url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
    with urlopen(url, timeout=30) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = [sample for family in families for sample in family.samples]
    found: Page = {"up": set()}
    for sample in samples:
        found.setdefault(sample.name, set()).update(sample.labels)
    return found


# Ids of units that Grafana has (packages/grafana-data/src/valueFormats/categories.ts).
GRAFANA_UNITS = ("short", "percentunit", "s", "bytes", "reqps", "ops")


def unknown(expression: str, page: Page) -> list[str]:
    """What an expression names that is not on the page."""
    metrics, grouped = named(expression)
    faults = [f"no metric {metric}" for metric in metrics if metric not in page]
    labels = {metric: page.get(metric, set()) | OF_PROMETHEUS for metric in metrics}
    for metric, selected in metrics.items():
        faults += [f"{metric} has no label {each}" for each in selected - labels[metric]]
    every = set().union(*labels.values())
    faults += [f"nothing has the label {each}" for each in grouped - every]
    return faults


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    every: list[dict[str, Any]] = group["rules"]
    return every


def panels() -> list[dict[str, Any]]:
    every: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return every


def test_every_alert_asks_for_what_is_there_and_says_what_to_do(page: Page) -> None:
    for rule in rules():
        assert unknown(rule["expr"], page) == [], rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
        labels = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
        _, grouped = named(rule["expr"])
        metrics = named(rule["expr"]).metrics
        shown = grouped or set.union(OF_PROMETHEUS, *(page[metric] for metric in metrics))
        assert set(labels) <= shown, rule["alert"]


def test_every_panel_shows_what_is_there(page: Page) -> None:
    queries = [target for panel in panels() for target in panel.get("targets", [])]
    assert len(queries) > 30
    for target in queries:
        expression = target["expr"]
        assert unknown(expression, page) == []
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        metrics, grouped = named(expression)
        known = set.union(OF_PROMETHEUS, *(page[metric] for metric in metrics))
        assert shown <= (grouped - {"le"} if " by (" in expression else known), expression
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
            assert inner is not None
            assert unknown(inner[1], page) == []


def test_the_share_of_a_canary_can_be_seen() -> None:
    (panel,) = [
        each for each in panels() if each["title"] == "Calls a second, by model and version"
    ]
    (target,) = panel["targets"]
    assert named(target["expr"])[1] == {"model", "version"}
    assert "rate(edgewright_requests_total{" in target["expr"]
    assert target["legendFormat"] == "{{model}} {{version}}"


def test_every_metric_of_ours_is_on_the_dashboard_or_in_an_alert(page: Page) -> None:
    text = DASHBOARD.read_text() + ALERTS.read_text()
    ours = {
        re.sub("_(bucket|sum|count|total|info)$", "", name)
        for name in page
        if name.startswith("edgewright_")
    }
    assert {name for name in ours if name not in text} == set()


def test_the_dashboard_is_one_that_grafana_can_read() -> None:
    """By the words of its schema; Grafana itself is not asked."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["uid"]
    assert dashboard["title"]
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert all(0 <= x < 24 for x, _ in cells)
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["type"] in ("timeseries", "stat", "table")
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert panel["fieldConfig"]["defaults"]["unit"] in GRAFANA_UNITS
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs) > 0
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) - {"__rate_interval", "__all"}
    assert used == set(variables)


@pytest.mark.parametrize(
    ("expression", "metrics", "grouped"),
    [
        ("up == 0", {"up": set()}, set()),
        ('a{x="by (z)", y!~"1|2"}[5m] > 1e3', {"a": {"x", "y"}}, set()),
        (
            "sum by (j, le) (rate(a_bucket[5m])) / on (j) b",
            {"a_bucket": set(), "b": set()},
            {"j", "le"},
        ),
        ("a / b > 0.8 or time() - c", {"a": set(), "b": set(), "c": set()}, set()),
    ],
)
def test_the_names_in_an_expression_are_found(
    expression: str, metrics: dict[str, set[str]], grouped: set[str]
) -> None:
    assert named(expression) == (metrics, grouped)


def test_prometheus_understands_every_panel(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing; it comes with Prometheus")
    variables = {"$__rate_interval": "5m", "$job": ".*", "$instance": ".*", "$model": ".*"}
    recorded = []
    for panel in panels():
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in variables.items():
                expression = expression.replace(name, value)
            recorded.append({"record": f"panel:{len(recorded)}", "expr": expression})
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(recorded)} rules found" in done.stdout


JOB = 'job="edgewright",instance="a:8002"'
NEWS = f'{JOB},model="news",version="1"'
# Alert -> series that let it fire and series that do not, a sample a minute, both for half an hour.
CASES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "EdgewrightDown": ({f"up{{{JOB}}}": "0x30"}, {f"up{{{JOB}}}": "1x30"}),
    "EdgewrightNotReady": (
        {f"edgewright_ready{{{JOB}}}": "0x30"},
        {f"edgewright_ready{{{JOB}}}": "0x3 1x27"},
    ),
    "EdgewrightErrors": (
        {
            f'edgewright_requests_total{{{NEWS},code="OK"}}': "0+980x30",
            f'edgewright_requests_total{{{NEWS},code="INTERNAL"}}': "0+20x30",
        },
        {
            f'edgewright_requests_total{{{NEWS},code="OK"}}': "0+980x30",
            f'edgewright_requests_total{{{NEWS},code="INTERNAL"}}': "0+5x30",
            f'edgewright_requests_total{{{NEWS},code="INVALID_ARGUMENT"}}': "0+500x30",
        },
    ),
    "EdgewrightStreamItemsFail": (
        {
            f'edgewright_stream_items_total{{{NEWS},status="answered"}}': "0+980x30",
            f'edgewright_stream_items_total{{{NEWS},status="failed"}}': "0+20x30",
        },
        {
            f'edgewright_stream_items_total{{{NEWS},status="answered"}}': "0+980x30",
            f'edgewright_stream_items_total{{{NEWS},status="failed"}}': "0+5x30",
            f'edgewright_stream_items_total{{{NEWS},status="invalid"}}': "0+500x30",
        },
    ),
    "EdgewrightSlow": (
        {
            f'edgewright_request_seconds_bucket{{{NEWS},le="0.5"}}': "0+98x30",
            f'edgewright_request_seconds_bucket{{{NEWS},le="1.0"}}': "0+100x30",
            f'edgewright_request_seconds_bucket{{{NEWS},le="+Inf"}}': "0+100x30",
        },
        {
            f'edgewright_request_seconds_bucket{{{NEWS},le="0.5"}}': "0+100x30",
            f'edgewright_request_seconds_bucket{{{NEWS},le="1.0"}}': "0+100x30",
            f'edgewright_request_seconds_bucket{{{NEWS},le="+Inf"}}': "0+100x30",
        },
    ),
    "EdgewrightQueueNearLimit": (
        {
            f"edgewright_queue_rows{{{JOB}}}": "10x30",
            f"edgewright_queue_rows_limit{{{JOB}}}": "1024x30",
            f"edgewright_queue_wait_seconds{{{JOB}}}": "1.7x30",
            f"edgewright_queue_wait_limit_seconds{{{JOB}}}": "2x30",
        },
        {
            f"edgewright_queue_rows{{{JOB}}}": "800x30",
            f"edgewright_queue_rows_limit{{{JOB}}}": "1024x30",
            f"edgewright_queue_wait_seconds{{{JOB}}}": "1.5x30",
            f"edgewright_queue_wait_limit_seconds{{{JOB}}}": "2x30",
        },
    ),
    "EdgewrightOverloaded": (
        {
            f'edgewright_rejected_total{{{JOB},reason="QUEUE_FULL"}}': "0+20x30",
            f'edgewright_requests_total{{{NEWS},code="OK"}}': "0+980x30",
        },
        {
            f'edgewright_rejected_total{{{JOB},reason="QUEUE_FULL"}}': "0+5x30",
            f'edgewright_rejected_total{{{JOB},reason="INPUT_INVALID"}}': "0+500x30",
            f'edgewright_requests_total{{{NEWS},code="OK"}}': "0+980x30",
        },
    ),
    "EdgewrightDeadlinesMissed": (
        {
            f'edgewright_requests_total{{{NEWS},code="OK"}}': "0+90x30",
            f'edgewright_requests_total{{{NEWS},code="DEADLINE_EXCEEDED"}}': "0+10x30",
        },
        {
            f'edgewright_requests_total{{{NEWS},code="OK"}}': "0+98x30",
            f'edgewright_requests_total{{{NEWS},code="DEADLINE_EXCEEDED"}}': "0+2x30",
        },
    ),
    "EdgewrightNotFinite": (
        {f"edgewright_not_finite_rows_total{{{NEWS}}}": "0x25 1x5"},
        {f"edgewright_not_finite_rows_total{{{NEWS}}}": "7x30"},
    ),
    "EdgewrightUnverified": (
        {f'edgewright_model_info{{{NEWS},verdict="UNVERIFIED"}}': "1x30"},
        {f'edgewright_model_info{{{NEWS},verdict="VERIFIED"}}': "1x30"},
    ),
    "EdgewrightFeedbackNotKept": (
        {f"edgewright_feedback_failed_entries_total{{{JOB}}}": "0x25 3x5"},
        {f"edgewright_feedback_failed_entries_total{{{JOB}}}": "3x30"},
    ),
    "EdgewrightPredictionsDropped": (
        {f'edgewright_logged_predictions_total{{{JOB},outcome="image_dropped"}}': "0x25 9x5"},
        {f'edgewright_logged_predictions_total{{{JOB},outcome="written"}}': "0+9x30"},
    ),
    "EdgewrightLogLinesDropped": (
        {f"edgewright_dropped_log_lines_total{{{JOB}}}": "0x25 9x5"},
        {f"edgewright_dropped_log_lines_total{{{JOB}}}": "9x30"},
    ),
    "EdgewrightLoopHeldUp": (
        {
            f'edgewright_event_loop_lag_seconds_bucket{{{JOB},le="0.1"}}': "0+110x30",
            f'edgewright_event_loop_lag_seconds_bucket{{{JOB},le="0.25"}}': "0+120x30",
            f'edgewright_event_loop_lag_seconds_bucket{{{JOB},le="+Inf"}}': "0+120x30",
        },
        {
            f'edgewright_event_loop_lag_seconds_bucket{{{JOB},le="0.1"}}': "0+120x30",
            f'edgewright_event_loop_lag_seconds_bucket{{{JOB},le="0.25"}}': "0+120x30",
            f'edgewright_event_loop_lag_seconds_bucket{{{JOB},le="+Inf"}}': "0+120x30",
        },
    ),
    "EdgewrightCertificateExpires": (  # promtool begins at 0, in Unix time
        {f"edgewright_tls_certificate_expires_timestamp_seconds{{{JOB}}}": "1000000x30"},
        {f"edgewright_tls_certificate_expires_timestamp_seconds{{{JOB}}}": "0x15 2000000x15"},
    ),
    "EdgewrightReloadRefused": (
        {f'edgewright_reloads_total{{{JOB},files="tls",outcome="refused"}}': "0x25 1x5"},
        {f'edgewright_reloads_total{{{JOB},files="tls",outcome="taken"}}': "0x25 1x5"},
    ),
    "EdgewrightVersionNotServed": (
        {f'edgewright_model_problems{{{JOB},model="news"}}': "0x10 1x20"},
        {f'edgewright_model_problems{{{JOB},model="news"}}': "0x10 1x3 0x17"},
    ),
    "EdgewrightLoadsRefused": (
        {f'edgewright_refused_loads_total{{{JOB},model="news"}}': "0x25 1x5"},
        {f'edgewright_refused_loads_total{{{JOB},model="news"}}': "3x30"},
    ),
    "EdgewrightRestarts": (
        {f"process_start_time_seconds{{{JOB}}}": "1x20 2x3 3x3 4x4"},
        {f"process_start_time_seconds{{{JOB}}}": "1x20 2x10"},
    ),
    "EdgewrightFilesNearLimit": (
        {f"process_open_fds{{{JOB}}}": "900x30", f"process_max_fds{{{JOB}}}": "1024x30"},
        {f"process_open_fds{{{JOB}}}": "700x30", f"process_max_fds{{{JOB}}}": "1024x30"},
    ),
}


def evaluations() -> Iterator[dict[str, Any]]:
    """For promtool: each alert fires where it should, and not where it should not."""
    for alert, sides in CASES.items():
        for series, firing in zip(sides, (True, False), strict=True):
            expression = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
            samples = [{"labels": "{}", "value": 1}] if firing else []
            yield {
                "name": f"{alert} {'fires' if firing else 'is silent'}",
                "interval": "1m",
                "input_series": [{"series": each, "values": v} for each, v in series.items()],
                "promql_expr_test": [
                    {"expr": expression, "eval_time": "30m", "exp_samples": samples}
                ],
            }


def test_every_alert_has_a_case_of_each_side() -> None:
    assert [rule["alert"] for rule in rules()] == list(CASES)


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing; it comes with Prometheus")
    config = DEPLOY / "prometheus" / "prometheus.yaml"
    subprocess.run([promtool, "check", "config", config], check=True, capture_output=True)
    file = tmp_path / "alerts_test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": list(evaluations())}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
