"""A server that is killed with SIGKILL in the middle of a stream loses nothing it acknowledged."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_port
from sqlalchemy import text

from edgewright.client import Acknowledgement, AckStatus, Client, Feedback
from edgewright.serve.feedback_store import FeedbackStore

KILLS = 20
START = "from edgewright.cli import main; main()"


class Mortal:
    """A server process on one port that is killed and started again."""

    def __init__(self, repository: Path, url: str) -> None:
        self.port = free_port()
        self._command = [
            sys.executable, "-c", START, "serve", str(repository), "--host", "127.0.0.1",
            "--port", str(self.port), "--metrics-port", "0", "--feedback", url, "--json",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None
        assert json.loads(self._process.stdout.readline())["port"] == self.port

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_lose_nothing_that_was_acknowledged(store_url: str, repository: Path) -> None:
    server = Mortal(repository, store_url)
    stop = threading.Event()
    acknowledged: list[Acknowledgement] = []
    sent: list[str] = []
    faults: list[BaseException] = []
    in_flight: list[int] = []

    def entries() -> Iterator[Feedback]:
        while not stop.is_set():
            entry = Feedback("sport", "p", note="x" * random.randrange(200))
            sent.append(entry.entry_id)
            yield entry

    def run() -> None:
        try:
            with Client(f"127.0.0.1:{server.port}", timeout_s=120) as client:
                acknowledged.extend(client.stream_feedback(entries()))
        except BaseException as error:
            faults.append(error)

    caller = threading.Thread(target=run)
    caller.start()
    rng = random.Random(4)
    try:
        for _ in range(KILLS):
            seen = len(acknowledged)
            time.sleep(rng.uniform(0.0, 0.5))
            server.kill()
            in_flight.append(len(sent) - len(acknowledged))
            _check(store_url, acknowledged)
            server.start()
            _until_more_than(acknowledged, seen, caller)
    finally:
        stop.set()
        caller.join(120)
        server.kill()
    assert faults == []
    assert [each.entry_id for each in acknowledged] == sent
    assert {each.status for each in acknowledged} <= {AckStatus.UNMATCHED, AckStatus.DUPLICATE}
    # What was in flight at a kill has been sent again. Whether its first copy was committed by then,
    # so that the second is a DUPLICATE, is chance.
    assert max(in_flight) > 0
    assert sorted(_stored(store_url)) == sorted(sent)


def _check(url: str, acknowledged: list[Acknowledgement]) -> None:
    told = {each.entry_id for each in list(acknowledged)}
    stored = _stored(url)
    assert told <= set(stored)
    assert len(stored) == len(set(stored))


def _stored(url: str) -> list[str]:
    with FeedbackStore.open(url, create=False) as store:
        query = text("SELECT entry_id FROM edgewright_feedback")
        return store.transaction(lambda connection: list(connection.execute(query).scalars()))


def _until_more_than(
    acknowledged: list[Acknowledgement], seen: int, caller: threading.Thread
) -> None:
    end = time.monotonic() + 60
    while len(acknowledged) <= seen and caller.is_alive():
        assert time.monotonic() < end, "nothing was acknowledged after the restart"
        time.sleep(0.01)
