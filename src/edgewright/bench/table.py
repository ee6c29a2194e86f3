"""What a run came to, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from edgewright.bench.config import Open, Search
from edgewright.bench.histogram import Histogram
from edgewright.bench.record import Record
from edgewright.bench.result import BEYOND, Latency, Result

COLUMNS: Final = ("p50", "p90", "p99", "p99_9")
_BARS: Final = 12
_BAR_WIDTH: Final = 50
_MESSAGE: Final = 160  # characters of an error's message


def lines(record: Record) -> Iterator[str]:
    """A row for each load, then errors, and of a single load its histogram."""
    yield (
        f"{record.target}: {record.subject}, {record.inputs.told}, "
        f"{record.config.rows_per_call} a call"
    )
    yield ""
    yield from _aligned(
        [_heading(record), *(row for each in record.results for row in _rows(each))]
    )
    if any(
        each.response.percentile_ms(name) is None for each in record.results for name in COLUMNS
    ):
        yield f"-: fewer than {BEYOND} calls were slower, so chance would decide it"
    for result in record.results:
        yield from _errors(result)
    if len(record.results) == 1 and record.results[0].tally.answered:
        yield ""
        yield from histogram(record.results[0].tally.response)
    if record.config.search is not None:
        yield ""
        yield found(record, record.config.search)


def found(record: Record, search: Search) -> str:
    """What a search for a rate found, in a sentence."""
    kept = f"a p99 of at most {search.p99_ms:g} ms and {search.answered:.1%} of calls answered"
    if record.found_rate is None:
        return f"no rate was found with {kept}"
    return f"{record.found_rate:g} calls/s is the highest rate found with {kept}"


def histogram(counted: Histogram) -> Iterator[str]:
    """Bars of response times, in steps of equal ratio between the fastest and the slowest."""
    least, most = max(counted.least_ns, 1), max(counted.most_ns, 1)
    step = max(math.log(most / least), 1e-9) / _BARS
    bars = [0] * _BARS
    for low, high, count in counted.buckets():
        middle = min(max((low + high) // 2, least), most)
        bars[min(int(math.log(middle / least) / step), _BARS - 1)] += count
    for place, count in enumerate(bars):
        edge = least * math.exp(step * (place + 1)) / 1e6
        bar = "█" * math.ceil(_BAR_WIDTH * count / max(bars))
        yield f"<= {edge:9.2f} ms {count:9} {bar}".rstrip()


def _heading(record: Record) -> list[str]:
    loads = "rate" if any(isinstance(each.load, Open) for each in record.results) else "load"
    latencies = [name.replace("_", ".") for name in COLUMNS]
    return [loads, "calls/s", "rows/s", "refused", "failed", *latencies, "max ms", "calls"]


def _rows(result: Result) -> Iterator[list[str]]:
    tally = result.tally
    yield [
        str(result.load),
        f"{result.calls_per_s:.1f}",
        f"{result.rows_per_s:.1f}",
        str(tally.refused),
        str(tally.failed),
        *_latencies(result.response),
        str(tally.answered),
    ]
    if isinstance(result.load, Open):
        yield ["  from sending", "", "", "", "", *_latencies(result.service), ""]


def _latencies(latency: Latency) -> list[str]:
    told = [latency.percentile_ms(name) for name in COLUMNS]
    most = latency.histogram.most_ns / 1e6 if latency.histogram.count else None
    return ["-" if each is None else f"{each:.2f}" for each in (*told, most)]


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([f"{first:<{widths[0]}}", *cells]).rstrip()


def _errors(result: Result) -> Iterator[str]:
    for (code, reason), each in result.tally.failures.items():
        name = f"{code} ({reason})" if reason else code
        message = " ".join(each.message.split())[:_MESSAGE]
        printable = "".join(letter if letter.isprintable() else " " for letter in message)
        yield (
            f"{result.load}: {each.count} x {name}, from {each.first_s:.1f} s to "
            f"{each.last_s:.1f} s: {printable}"
        )
