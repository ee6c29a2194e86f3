"""Entries of feedback a second that are acknowledged as durable, and what they cost other callers.

    .venv/bin/python -m benchmarks.serve_feedback REPOSITORY [--store postgresql://...]

The only model there is served with a store. Streams send messages of 64 entries, 8 of them ahead of
their acknowledgements, as edgewright's client does. In turns there are feedback alone, calls alone
(they fall due by the clock), and both together.
"""

from __future__ import annotations

import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeVar

import click
import grpc

from benchmarks.load import Load, LoadResult, build_load_generator, run_load
from benchmarks.serve_protocol import TYPED
from benchmarks.serve_subject import payloads_of
from benchmarks.served import served
from edgewright.serve.feedback_report import report
from edgewright.serve.feedback_rows import Selection
from edgewright.serve.feedback_store import FeedbackStore
from edgewright.v1.feedback_pb2 import (
    ACK_STATUS_UNMATCHED,
    FeedbackEntry,
    StreamFeedbackRequest,
    StreamFeedbackResponse,
)

T = TypeVar("T")
_WORDS: Final = 12
_CALLERS: Final = 256  # so many that a call which falls due always finds one free
_ENTRIES: Final = 64  # of a message
_AHEAD: Final = 8  # messages without an acknowledgement
_STREAM: Final = "/edgewright.v1.FeedbackService/StreamFeedback"


@dataclass
class Senders:
    """Streams that send as fast as they are acknowledged, each on a thread and a connection."""

    target: str
    streams: int
    acknowledged: int = 0
    faults: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """While within; afterwards everything sent is acknowledged."""
        self._stop.clear()
        threads = [threading.Thread(target=self._send) for _ in range(self.streams)]
        for each in threads:
            each.start()
        try:
            yield
        finally:
            self._stop.set()
            for each in threads:
                each.join()

    def _send(self) -> None:
        room = threading.Semaphore(_AHEAD)
        try:
            with grpc.insecure_channel(
                self.target, [("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                stream = channel.stream_stream(
                    _STREAM,
                    StreamFeedbackRequest.SerializeToString,
                    StreamFeedbackResponse.FromString,
                )
                for response in stream(self._messages(room)):
                    self._count(response)
                    room.release()
        except grpc.RpcError as error:
            failed: Any = error
            self.faults.append(f"{failed.code().name}: {failed.details()}")

    def _messages(self, room: threading.Semaphore) -> Iterator[StreamFeedbackRequest]:
        message = StreamFeedbackRequest(
            entries=[
                FeedbackEntry(label="right", new_label=True, prediction_id=f"p{n}")
                for n in range(_ENTRIES)
            ]
        )
        while not self._stop.is_set():
            room.acquire()
            prefix = uuid.uuid4().hex
            for number, entry in enumerate(message.entries):
                entry.entry_id = f"{prefix}-{number}"
            yield message

    def _count(self, response: StreamFeedbackResponse) -> None:
        kept = sum(each.status == ACK_STATUS_UNMATCHED for each in response.acknowledgements)
        with self._lock:
            self.acknowledged += kept
        if kept != _ENTRIES:
            self.faults.append(f"{kept} of {_ENTRIES} entries were kept")


@click.command()
@click.argument("repository", type=click.Path(exists=True, path_type=Path))
@click.option("--store", "stores", multiple=True, help="URL; an SQLite file of its own by default.")
@click.option("--streams", default="1,8", show_default=True, help="How many at once.")
@click.option("--rate", default=100.0, show_default=True, help="Calls a second, by the clock.")
@click.option("--seconds", default=5.0, show_default=True, help="Of a segment.")
@click.option("--rounds", default=3, show_default=True, help="Of three segments each.")
def main(
    repository: Path, stores: Sequence[str], streams: str, rate: float, seconds: float, rounds: int
) -> None:
    """Serve REPOSITORY's model with a store, and print entries a second and p99 of calls."""
    program = build_load_generator()
    with tempfile.TemporaryDirectory() as folder:
        for store in stores or [f"sqlite:///{folder}/feedback.db"]:
            with served(repository, "--feedback", store) as server:
                load = Load(
                    "grpc", server.target, TYPED.path, payloads_of(TYPED, _WORDS, Path(folder)),
                    callers=_CALLERS, seconds=seconds, rate=rate,
                )  # fmt: skip
                kept = sum(
                    measure(load, program, rounds, Senders(server.target, int(count)))
                    for count in streams.split(",")
                )
            check(store, kept)


def measure(load: Load, program: Path, rounds: int, senders: Senders) -> int:
    """Segments in turns, a line for what they come to; how many entries were acknowledged."""
    alone, beside, steady, busy = [], [], [], []
    for _ in range(rounds):
        alone.append(_during(senders, partial(time.sleep, load.seconds))[0])
        steady.append(run_load(load, program))
        rate, result = _during(senders, partial(run_load, load, program))
        beside.append(rate)
        busy.append(result)
    failed = sum(sum(each.errors.values()) for each in (*steady, *busy))
    click.echo(
        f"{senders.streams} streams: {_told(alone)} entries/s alone, {_told(beside)} beside "
        f"{load.rate:g} calls/s; p99 of calls {_p99(steady)} ms alone, "
        f"{_p99(busy)} beside feedback; failed calls: {failed}"
    )
    if senders.faults:
        raise click.ClickException(f"feedback failed: {senders.faults[0]}")
    return senders.acknowledged


def check(store: str, kept: int) -> None:
    """Raise where the store lacks entries that were acknowledged."""
    with FeedbackStore.open(store, create=False) as opened:
        entries = report(opened, Selection())["entries"]
    click.echo(f"{entries} entries in the store, {kept} acknowledged")
    if entries < kept:
        raise click.ClickException(f"{kept - entries} entries were acknowledged and are not there")


def _during(senders: Senders, work: Callable[[], T]) -> tuple[float, T]:
    """Entries acknowledged a second while ``work`` went on, and what it returned."""
    before, started = senders.acknowledged, time.monotonic()
    with senders.sending():
        result = work()
    return (senders.acknowledged - before) / (time.monotonic() - started), result


def _p99(results: Sequence[LoadResult]) -> str:
    return f"{median(each.latency_ms['p99'] for each in results):.1f}"


def _told(rates: Sequence[float]) -> str:
    return f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


if __name__ == "__main__":
    main()
