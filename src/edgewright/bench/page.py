"""The page that shows a run: loads side by side, percentiles, throughput, histograms, errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from edgewright.bench.config import Open
from edgewright.bench.histogram import Histogram
from edgewright.bench.record import Record
from edgewright.bench.result import BEYOND, Latency, Result
from edgewright.bench.table import found
from edgewright.figures import Axis, curve_figure
from edgewright.report import (
    Block,
    DataTable,
    Figure,
    Headline,
    Section,
    Tone,
    render_report,
)

_MOST_CURVES: Final = 8  # in one figure; more cannot be told apart
_NINES: Final = {0.3010: "50%", 1.0: "90%", 2.0: "99%", 3.0: "99.9%", 4.0: "99.99%", 5.0: "99.999%"}
_BINS: Final = 40  # of a histogram, between the fastest and the slowest of all
_SHOWN: Final = ("p50", "p90", "p99", "p99_9")


def page(record: Record) -> bytes:
    """The page as UTF-8 HTML."""
    answered = sorted((each for each in record.results if each.tally.answered), key=_offered)
    sections = [Section("Loads", [_loads(record.results)], _how(record))]
    doubts = [(str(each.load), warning) for each in record.results for warning in each.warnings()]
    if doubts:
        table = DataTable(["load", "what"], doubts, wraps=[1])
        sections.append(Section("What to know before believing this", [table]))
    if answered:
        sections.append(Section("How long calls took", _latency(answered)))
    if any(each.tally.failures for each in record.results):
        sections.append(Section("Errors", [_errors(record.results)]))
    return render_report(
        title=f"Load on {record.target}",
        subtitle=f"{record.subject}, {record.inputs.told}, {record.config.rows_per_call} a call",
        headline=_headline(record, answered),
        sections=sections,
        manifest_sha256=record.subject.manifest_sha256,
    )


def _offered(result: Result) -> tuple[bool, float]:
    """Loads from the least to the greatest, a search's closed loop before its rates."""
    load = result.load
    return (True, load.rate) if isinstance(load, Open) else (False, load.callers)


def _headline(record: Record, answered: Sequence[Result]) -> Headline:
    config, host = record.config, record.host
    facts = [
        ("measured, each load", f"{config.duration_s:g} s after {config.warm_up_s:g} s"),
        ("deadline of a call", f"{config.deadline_s * 1e3:g} ms"),
        ("request, mean", f"{record.requests.mean_bytes:,.0f} bytes"),
        ("load made on", f"{host['name']}, {host['cores']} cores"),
        ("processes", str(config.processes)),
        ("began", record.began.replace("T", " ").replace("+00:00", " UTC")),
    ]
    if not answered:
        text = "No call was answered"
        if record.answered_within:
            text = "Nothing was measured: no call that was due in time was answered"
        return Headline(text, Tone.BAD, record.target, facts)
    best = max(answered, key=lambda each: each.rows_per_s)
    text = f"{best.calls_per_s:,.0f} calls/s answered at {best.load}"
    if config.search is not None:
        text = found(record, config.search)
    p99 = best.response.percentile_ms("p99")
    detail = f"p99 {p99:.2f} ms there. " if p99 is not None else ""
    doubtful = {str(each.load): None for each in record.results if not each.kept_up}
    if doubtful:
        detail += (
            f"At {', '.join(doubtful)} the generator itself was short of time, so that the figures "
            "are partly its own."
        )
    return Headline(text, Tone.WARN if doubtful else Tone.NEUTRAL, detail, facts)


def _how(record: Record) -> str:
    if any(isinstance(each.load, Open) for each in record.results):
        return (
            "Open loop: calls were due by a schedule fixed beforehand. The response time runs from "
            "when a call was due, the service time from when it was sent; where the server makes "
            "callers wait, only the first tells it."
        )
    return (
        "Closed loop: each caller sent when it had its answer. A server that stalls is then asked "
        "less, so that the latencies hold at this concurrency, and not for callers who come when "
        "they like: --rate measures those."
    )


def _loads(results: Sequence[Result]) -> DataTable:
    names = [name.replace("_", ".") for name in _SHOWN]
    columns = [
        *("load", "calls/s", "rows/s", "refused", "failed"),
        *(f"{name}, ms" for name in names),
        *("max, ms", "calls", "service p99, ms", "generator's CPU"),
    ]
    rows = [
        [
            str(each.load),
            f"{each.calls_per_s:,.1f}",
            f"{each.rows_per_s:,.1f}",
            f"{each.tally.refused:,}",
            f"{each.tally.failed:,}",
            *(_told(each.response, name) for name in _SHOWN),
            f"{each.tally.response.most_ns / 1e6:,.2f}" if each.tally.answered else "–",
            f"{each.tally.answered:,}",
            _told(each.service, "p99"),
            f"{each.effort.cpu:.0%}",
        ]
        for each in results
    ]
    return DataTable(
        columns,
        rows,
        "calls/s and rows/s are those answered within the time measured. Latencies are of the "
        f"answered calls that were due in it; –: fewer than {BEYOND} calls were slower.",
    )


def _told(latency: Latency, name: str) -> str:
    value = latency.percentile_ms(name)
    return "–" if value is None else f"{value:,.2f}"


def _latency(results: Sequence[Result]) -> list[Block]:
    few = _few(results)
    percentiles, histograms = _percentiles(few), _histograms(few)
    if len(results) == 1:
        return [percentiles, histograms]
    return [percentiles, _throughput(results), histograms]


def _few(results: Sequence[Result]) -> list[Result]:
    """As many as a figure can hold, from the least load to the greatest."""
    count = min(len(results), _MOST_CURVES)
    return [
        results[round(place * (len(results) - 1) / max(count - 1, 1))] for place in range(count)
    ]


def _names(results: Sequence[Result]) -> list[str]:
    """Of each one's curve; a load that was made again has a number."""
    loads = [str(each.load) for each in results]
    times = [loads[: place + 1].count(load) for place, load in enumerate(loads)]
    return [
        f"{load} ({time})" if time > 1 else load for load, time in zip(loads, times, strict=True)
    ]


def _percentiles(results: Sequence[Result]) -> Figure:
    """Latency by percentile, on an axis that gives each further nine the same room."""
    curves = [list(_curve(each.tally.response)) for each in results]
    series = dict(zip(_names(results), curves, strict=True))
    if len(results) == 1 and isinstance(results[0].load, Open):
        series = {
            "response, from when it was due": list(_curve(results[0].tally.response)),
            "service, from when it was sent": list(_curve(results[0].tally.service)),
        }
    furthest = max((place for points in series.values() for place, _ in points), default=1.0)
    ticks = [(place, word) for place, word in _NINES.items() if place <= furthest + 0.2]
    return curve_figure(
        series,
        Axis("share of calls that are at least as fast", ticks=ticks),
        Axis("ms", log=True),
        f"Latency by percentile, as far as {BEYOND} calls are slower.",
    )


def _curve(counted: Histogram) -> Iterator[tuple[float, float]]:
    """(nines, ms): 1 is 90%, 2 is 99%; nothing of a single call."""
    fewest = max(min(BEYOND, counted.count - 1), 1)
    beyond = counted.count
    for _, high_ns, count in counted.buckets():
        beyond -= count
        if beyond < fewest:
            return
        yield -math.log10(beyond / counted.count), high_ns / 1e6


def _throughput(results: Sequence[Result]) -> Figure:
    """What each load's throughput costs in latency."""
    series = {}
    for name in ("p50", "p99"):
        points = [(each.calls_per_s, each.response.percentile_ms(name)) for each in results]
        told = [(rate, value) for rate, value in points if value is not None]
        if told:
            series[name] = told
    if not series:
        rates = [(each.calls_per_s, each.tally.response.most_ns / 1e6) for each in results]
        series["slowest"] = rates
    alone = f"{next(iter(series))}, ms"  # one curve has no legend
    return curve_figure(
        series,
        Axis("calls answered a second"),
        Axis(alone if len(series) == 1 else "ms", log=True),
        "Latency against throughput, from the least load to the greatest.",
    )


def _histograms(results: Sequence[Result]) -> Figure:
    """Shares of calls by response time, in bins of equal ratio that all loads share."""
    least = max(min(each.tally.response.least_ns for each in results), 1)
    most = max(max(each.tally.response.most_ns for each in results), least + 1)
    step = math.log(most / least) / _BINS
    series = {}
    for name, each in zip(_names(results), results, strict=True):
        bins = [0] * _BINS
        for low, high, count in each.tally.response.buckets():
            middle = min(max((low + high) / 2, least), most)
            bins[min(int(math.log(middle / least) / step), _BINS - 1)] += count
        series[name] = [
            (least * math.exp(step * edge) / 1e6, 100 * share / each.tally.answered)
            for place, share in enumerate(bins)
            for edge in (place, place + 1)
        ]
    return curve_figure(
        series, Axis("ms", log=True), Axis("% of calls"), "Histogram of response times."
    )


def _errors(results: Sequence[Result]) -> DataTable:
    rows = [
        [
            str(result.load),
            code,
            reason or "–",
            f"{each.count:,}",
            f"{each.first_s:.1f} to {each.last_s:.1f} s",
            each.message,
        ]
        for result in results
        for (code, reason), each in result.tally.failures.items()
    ]
    return DataTable(["load", "code", "reason", "calls", "when", "first message"], rows, wraps=[5])
