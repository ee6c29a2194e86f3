"""Work in the background gives way to callers, and a reload does what costs there."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from edgewright.bundle import Bundle
from edgewright.errors import IntegrityError, NotReadyError
from edgewright.repository import Repository
from edgewright.serve import models
from edgewright.serve.background import NICE, Background
from edgewright.serve.models import ServedModel, load_model

from .bundles import Recipe
from .conftest import Launch, until

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux alone")


def nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@LINUX
@pytest.mark.parametrize("more", [0, 5, 19])
def test_work_gives_way_and_whoever_waits_for_it_does_not(more: int) -> None:
    """However nice the server itself is; of a thread of its own, for none gets less nice again."""

    def look() -> tuple[int, int, int]:
        mine = min(nice() + more, 19)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), mine)
        background = Background(1)
        given = background.run(nice)
        background.close()
        return mine, given, nice()

    with ThreadPoolExecutor(1) as pool:
        mine, given, after = pool.submit(look).result()
    assert given == min(mine + NICE, 19)
    assert after == mine


def test_its_errors_are_its_callers(background: Background) -> None:
    def refuse() -> None:
        raise IntegrityError("altered")

    with pytest.raises(IntegrityError, match="altered"):
        background.run(refuse)
    assert background.run(lambda: 1) == 1


def test_what_has_begun_is_finished_and_what_has_not_is_given_up(background: Background) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def piece() -> str:
        begun.set()
        assert may_end.wait(30)
        return "done"

    with ThreadPoolExecutor() as pool:
        first = pool.submit(background.run, piece)
        assert begun.wait(30)
        second = pool.submit(background.run, piece)
        while not background._pool._work_queue.qsize():
            assert not second.done()
        background.close()
        with pytest.raises(NotReadyError, match="given up"):
            second.result()
        may_end.set()
        assert first.result() == "done"
    with pytest.raises(NotReadyError, match="given up"):
        background.run(piece)


def load(repository: Path, background: Background | None, threads: int = 1) -> ServedModel:
    where = Repository(repository)
    return load_model(
        where, "news", 1, threads=threads, max_batch=2, instances=2, background=background
    )


def threads_here() -> set[int]:
    """But for those of gRPC's core, which come and go when it likes and have names of their own."""
    found, ours = set(), Path("/proc/self/comm").read_text()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            if (task / "comm").read_text() == ours:
                found.add(int(task.name))
    return found


@LINUX
@pytest.mark.parametrize("threads", [1, 2])
def test_what_proves_a_model_gives_way_and_no_thread_of_its_sessions_does(
    repository: Path, background: Background, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    ran: set[int] = set()
    plain = ServedModel.scores

    def scores(model: ServedModel, rows: object) -> object:
        ran.add(nice())
        return plain(model, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(ServedModel, "scores", scores)
    before = threads_here()
    model = load(repository, background, threads)
    assert ran == {min(nice() + NICE, 19)}
    theirs = threads_here() - before
    giving_way = [each for each in theirs if os.getpriority(os.PRIO_PROCESS, each) > nice()]
    assert len(giving_way) == 1  # the background's own
    assert len(theirs) == 1 + 2 * (threads - 1)
    assert model.instances == 2


def test_a_load_that_is_given_up_ends_at_its_next_piece(
    repository: Path, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = models._proven_apart

    def close_meanwhile(*arguments: Any) -> Any:
        background.close()
        return plain(*arguments)

    monkeypatch.setattr(models, "_proven_apart", close_meanwhile)
    with pytest.raises(NotReadyError, match="given up"):
        load(repository, background)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="threads are scheduled so on Linux")
def test_compute_threads_cut_in_while_a_model_is_loaded_beside_calls(
    launch: Launch, publish: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = publish(news=Recipe())
    running = launch(where)
    told: list[set[int]] = []
    plain = models._warm_up

    def policies() -> set[int]:
        threads = running.server.batcher._threads._threads
        return {os.sched_getscheduler(each.native_id or 0) for each in threads}

    def noting(*arguments: Any) -> None:
        told.append(policies())
        plain(*arguments)

    monkeypatch.setattr(models, "_warm_up", noting)
    Repository(where).publish(where / "news" / "1", "news")
    running.loop.run(running.server.follower.look())
    assert told == [{os.SCHED_OTHER}]
    assert policies() == {os.SCHED_BATCH}


def test_while_the_proof_of_one_model_hangs_another_is_loaded(
    launch: Launch, publish: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = publish(hangs=Recipe(), news=Recipe())
    running = launch(where, watch_seconds=0.02)
    hanging, may_end = threading.Event(), threading.Event()

    plain = models._proven_apart

    def hang_of_one(bundle: Bundle, *arguments: Any) -> Any:
        if bundle.path.parent.name == "hangs":
            hanging.set()
            assert may_end.wait(60)
        return plain(bundle, *arguments)

    monkeypatch.setattr(models, "_proven_apart", hang_of_one)
    try:
        Repository(where).publish(where / "hangs" / "1", "hangs")
        assert hanging.wait(60)
        Repository(where).publish(where / "news" / "1", "news")
        until(lambda: running.server.registry.entry("news").version == 2)
        assert running.server.registry.entry("hangs").version == 1
    finally:
        may_end.set()
