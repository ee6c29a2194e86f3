"""What is served follows the repository, and nothing bad ever displaces what answers."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import re
import tempfile
import threading
import weakref
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgewright.errors import (
    ConfigError,
    EdgewrightError,
    IntegrityError,
    ModelNotFoundError,
    NotReadyError,
)
from edgewright.pointer import Canary
from edgewright.repository import Repository
from edgewright.serve import follower
from edgewright.serve.follower import Follower
from edgewright.serve.loader import AT_ONCE, Loader
from edgewright.serve.problems import REPOSITORY, WHOLE_MODEL
from edgewright.serve.registry import Lineup, Registry, State
from edgewright.serve.version_policy import VersionPolicy

from .conftest import until
from .versions_on_disk import BAD, Disk, FakeCounts, FakeModel, FakeSurroundings

T = TypeVar("T")


class Followed:
    """A follower on an event loop of its own, one step at a time."""

    def __init__(self, disk: Disk, versions: str = "current") -> None:
        self.disk = disk
        self.runner = asyncio.Runner()
        self.registry = Registry(random.Random(0))
        self.around = FakeSurroundings()
        self.counts = FakeCounts()
        self.clock = 0.0
        self.follower = self.runner.run(self._build(versions))

    async def _build(self, versions: str) -> Follower:
        refused = self.counts.refusals.append
        loader = Loader(self.disk.repository, self.disk.load, refused, lambda: self.clock)
        policy = VersionPolicy.parse(versions)
        disk, registry = self.disk.repository, self.registry
        return Follower(disk, registry, loader, policy, self.around, self.counts)

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(step)

    def start(self) -> None:
        self.run(self.follower.start())
        self.registry.state = State.READY

    def look(self) -> None:
        self.run(self.follower.look())

    def task(self, step: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        async def begun() -> asyncio.Task[T]:
            return asyncio.create_task(step)

        return self.run(begun())

    async def until_current(self, version: int, name: str = "news") -> None:
        async with asyncio.timeout(30):
            while (lineup := self.registry.lineup(name)) is None or lineup.current != version:
                await asyncio.sleep(0.01)

    @property
    def current(self) -> int | None:
        lineup = self.registry.lineup(self.disk.name)
        return lineup.current if lineup else None

    @property
    def loaded(self) -> list[int]:
        lineup = self.registry.lineup(self.disk.name)
        return sorted(lineup.versions) if lineup else []

    def problems(self) -> dict[int, str]:
        return self.follower.problems.of(self.disk.name)

    def close(self) -> None:
        self.run(self.follower.close())
        self.runner.close()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """Version 1 of "news", good and current."""
    disk = Disk(tmp_path / "repository")
    disk.write(1, "one")
    disk.repository.make_current("news", 1)
    return disk


@contextmanager
def following(disk: Disk, versions: str = "current") -> Iterator[Followed]:
    followed = Followed(disk, versions)
    try:
        followed.start()
        yield followed
    finally:
        followed.close()


def point(disk: Disk, version: int, content: str) -> None:
    disk.write(version, content)
    disk.repository.make_current(disk.name, version)


def test_a_new_current_version_takes_over_and_the_old_one_leaves(disk: Disk) -> None:
    with following(disk) as server:
        point(disk, 2, "two")
        assert server.current == 1
        server.look()
        assert (server.current, server.loaded) == (2, [2])
        assert server.around.answers == [1, 1, 2]  # announced, loaded, swapped: never nobody
        disk.repository.rollback("news")
        server.look()
        assert (server.current, server.loaded) == (1, [1])


def test_nothing_is_loaded_again_while_nothing_changes(disk: Disk) -> None:
    with following(disk) as server:
        for _ in range(3):
            server.look()
    assert disk.loads == [("news", 1)]


def test_a_bad_version_displaces_nothing_is_told_once_and_not_tried_again(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    with following(disk) as server:
        point(disk, 2, BAD)
        for _ in range(4):
            server.look()
        assert (server.current, server.loaded) == (1, [1])
        assert server.problems() == {2: "news version 2 does not answer: version 2 holds bad"}
        assert disk.loads == [("news", 1), ("news", 2)]
        warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
        assert len(warnings) == 1
        disk.write(2, "mended")
        server.look()
        assert (server.current, server.problems()) == (2, {})


def test_a_version_being_copied_is_tried_as_it_grows_and_warned_of_twice_at_most(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    with following(disk) as server:
        for part in range(6):
            point(disk, 2, f"{BAD} {part}")
            server.look()
            assert server.current == 1
        server.look()
        server.look()
        warnings = [each.message for each in caplog.records if each.levelno == logging.WARNING]
        assert [message[-1] for message in warnings] == ["0", "5"]
        disk.write(2, "whole")
        server.look()
        assert server.current == 2


def test_what_failed_for_no_fault_of_its_files_is_tried_again_after_a_while(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with following(disk) as server:
        point(disk, 2, "two")
        plain = disk.load
        with monkeypatch.context() as patch:
            patch.setattr(server.follower._loader, "_load", _out_of_memory)
            server.look()
        assert server.current == 1
        assert "MemoryError" in server.problems()[2]
        monkeypatch.setattr(server.follower._loader, "_load", plain)
        server.clock = 59.0
        server.look()
        assert server.current == 1
        server.clock = 61.0
        server.look()
        assert server.current == 2


def test_a_proof_that_was_killed_is_told_in_its_own_words_and_tried_again(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with following(disk) as server:
        point(disk, 2, "two")
        with monkeypatch.context() as patch:
            patch.setattr(server.follower._loader, "_load", _killed)
            server.look()
        told = "news version 2 does not answer: news version 2 cannot be loaded: it was killed"
        assert server.problems() == {2: told}
        assert not any(record.exc_info for record in caplog.records)
        server.clock = 61.0
        server.look()
        assert server.current == 2


def _killed(_name: str, _version: int) -> Any:
    raise NotReadyError("it was killed")


def _out_of_memory(_name: str, _version: int) -> Any:
    raise MemoryError


def test_a_version_that_was_replaced_in_place_is_loaded_anew(disk: Disk) -> None:
    with following(disk) as server:
        disk.write(1, "other")
        server.look()
        assert server.registry.ready("news").content == "other"  # type: ignore[attr-defined]
        disk.write(1, BAD)
        server.look()
        assert server.registry.ready("news").content == "other"  # type: ignore[attr-defined]
        assert list(server.problems()) == [1]


@pytest.mark.parametrize("gone", ["the version", "the model", "the repository", "the pointer"])
def test_what_vanishes_from_the_disk_goes_on_being_served_and_is_told(
    disk: Disk, gone: str
) -> None:
    point(disk, 2, "two")
    with following(disk) as server:
        away = disk.path.parent / "away"
        if gone == "the version":
            (disk.path / "news" / "2").rename(away)
        elif gone == "the model":
            (disk.path / "news").rename(away)
        elif gone == "the repository":
            disk.path.rename(away)
        else:
            disk.corrupt_pointer()
        server.look()
        server.look()
        assert (server.current, server.loaded) == (2, [2])
        name = REPOSITORY if gone == "the repository" else "news"
        assert "goes on answering" in server.follower.problems.of(name)[WHOLE_MODEL]


def test_a_version_that_vanished_can_be_left_for_another(disk: Disk) -> None:
    point(disk, 2, "two")
    with following(disk) as server:
        disk.remove(2)
        server.look()
        assert server.current == 2
        server.run(server.follower.make_current("news", 1))
        assert (server.current, server.loaded, server.problems()) == (1, [1], {})
        point(disk, 3, "three")
        server.look()
        disk.remove(3)
        server.run(server.follower.unload("news"))
        assert (server.current, server.problems()) == (None, {})


def test_an_unmounted_repository_is_not_an_empty_one(disk: Disk) -> None:
    with following(disk) as server:
        disk.path.rename(disk.path.parent / "away")
        disk.path.mkdir()
        server.look()
        assert server.current == 1
        (disk.path.parent / "away" / "news").rename(disk.path / "news")
        server.look()
        assert (server.current, server.problems()) == (1, {})


@pytest.mark.skipif(os.getuid() == 0, reason="permissions do not bind the superuser")
def test_a_folder_that_may_not_be_read_is_told(disk: Disk) -> None:
    with following(disk) as server:
        (disk.path / "news").chmod(0)
        try:
            server.look()
        finally:
            (disk.path / "news").chmod(0o755)
        assert server.current == 1
        assert "Permission denied" in server.problems()[WHOLE_MODEL]


def test_a_folder_that_gives_errors_is_told(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    with following(disk) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", _stale_handle)
            server.look()
        assert server.current == 1
        assert "Stale file handle" in server.follower.problems.of(REPOSITORY)[WHOLE_MODEL]
        server.look()
        assert server.follower.problems.of(REPOSITORY) == {}


def _stale_handle(_path: Path) -> Any:
    raise OSError(116, "Stale file handle")


def test_links_to_versions_are_followed_and_dangling_ones_are_no_versions(disk: Disk) -> None:
    with following(disk) as server:
        for version in (2, 3):
            disk.write(version, str(version))
            (disk.path / "news" / str(version)).rename(disk.path.parent / f"release-{version}")
        (disk.path / "news" / "4").symlink_to(disk.path.parent / "release-2")
        (disk.path / "news" / "5").symlink_to(disk.path.parent / "nowhere")
        disk.repository.make_current("news", 4)
        server.look()
        assert disk.repository.versions("news") == [1, 4]
        assert server.registry.ready("news").content == "2"  # type: ignore[attr-defined]
        (disk.path / "news" / "4").unlink()
        (disk.path / "news" / "4").symlink_to(disk.path.parent / "release-3")
        server.look()
        assert server.registry.ready("news").content == "3"  # type: ignore[attr-defined]


def test_a_model_that_appears_is_served_once_it_is_proven(disk: Disk) -> None:
    with following(disk) as server:
        mail = Disk(disk.path, "mail")
        mail.write(1, BAD)
        server.look()
        assert server.registry.names() == ["news"]
        assert list(server.follower.problems.of("mail")) == [1]
        mail.write(2, BAD)
        server.look()
        assert list(server.follower.problems.of("mail")) == [2]
        mail.write(2, "mended")
        server.look()
        assert server.registry.names() == ["mail", "news"]
        assert server.follower.problems.of("mail") == {}


def test_problems_and_refused_loads_are_counted_and_forgotten_with_their_model(disk: Disk) -> None:
    with following(disk) as server:
        counts = server.counts
        assert counts.now == {"news": 0}
        point(disk, 2, BAD)
        server.look()
        server.look()
        with suppress(EdgewrightError):
            server.run(server.follower.make_current("news", 2))
        assert (counts.now, counts.refusals) == ({"": 0, "news": 1}, ["news", "news"])
        disk.write(2, "mended")
        mail = Disk(disk.path, "mail")
        mail.write(1, BAD)
        server.look()
        assert counts.now == {"": 0, "mail": 1, "news": 0}
        (disk.path / "mail").rename(disk.path.parent / "mail")
        server.look()
        assert counts.now == {"": 0, "news": 0}
        assert list(server.follower.plans) == ["news"]
        disk.path.rename(disk.path.parent / "away")
        server.look()
        assert counts.now == {"": 1, "news": 0}


def test_a_server_that_starts_on_a_bad_version_answers_with_the_one_before(disk: Disk) -> None:
    point(disk, 2, "two")
    point(disk, 3, BAD)
    with following(disk) as server:
        assert (server.current, list(server.problems())) == (2, [3])
        disk.write(3, "mended")
        server.look()
        assert (server.current, server.problems()) == (3, {})


def test_a_server_without_any_good_version_does_not_start(disk: Disk) -> None:
    disk.write(1, BAD)
    server = Followed(disk)
    with pytest.raises(IntegrityError, match="version 1 holds bad"):
        server.start()
    server.close()


def test_the_policy_holds_versions_beside_the_current_one(disk: Disk) -> None:
    for version in (2, 3, 4):
        disk.write(version, str(version))
    disk.repository.set_traffic("news", Canary(2, 0.5), None)
    for policy, held in {"current": [1, 2], "latest:1": [1, 2, 4], "all": [1, 2, 3, 4]}.items():
        with following(disk, policy) as server:
            assert (server.current, server.loaded) == (1, held)
    with following(disk, "all") as server:
        disk.remove(4)
        disk.write(3, BAD)
        server.look()
        assert server.loaded == [1, 2, 3]
        assert list(server.problems()) == [3]


def test_going_back_to_a_version_that_is_held_loads_nothing(disk: Disk) -> None:
    disk.write(2, "two")
    with following(disk, "latest:2") as server:
        server.run(server.follower.make_current("news", 2))
        assert server.run(server.follower.rollback("news")) == 1
        assert (server.current, server.loaded) == (1, [1, 2])
    assert disk.loads == [("news", 1), ("news", 2)]


def test_a_canary_gets_its_weight_of_the_calls_that_name_no_version() -> None:
    versions: dict[int, Any] = {each: FakeModel("news", each, "") for each in (1, 2)}
    registry = Registry(random.Random(0))
    registry.state = State.READY
    for weight in (0.01, 0.1, 0.9, 1.0):
        registry.put(Lineup("news", 1, versions, canary=2, canary_weight=weight))
        share = sum(registry.route("news").version == 2 for _ in range(10_000)) / 10_000
        assert share == pytest.approx(weight, abs=0.01)
        assert {registry.route("news", 1).version for _ in range(100)} == {1}


@pytest.mark.parametrize("told", ["", "Current", "latest", "latest:0", "latest:-1", "2", "all "])
def test_other_policies_are_refused(told: str) -> None:
    with pytest.raises(ConfigError, match="current, latest:N or all"):
        VersionPolicy.parse(told)


def test_an_unloaded_model_is_served_again_when_a_version_is_made_current(disk: Disk) -> None:
    with following(disk) as server:
        server.run(server.follower.unload("news"))
        assert (server.current, server.registry.names()) == (None, [])
        server.look()
        assert server.current is None
        server.run(server.follower.make_current("news", 1))
        assert server.current == 1


def test_a_version_is_proven_before_the_repository_names_it(disk: Disk) -> None:
    disk.write(2, BAD)
    disk.write(3, "three")
    with following(disk) as server:
        for step in (
            server.follower.make_current("news", 2),
            server.follower.set_traffic("news", Canary(2, 0.1), None),
            server.follower.set_traffic("news", None, 2),
        ):
            with pytest.raises(IntegrityError, match="version 2 holds bad"):
                server.run(step)
        assert disk.repository.pointer("news").named == (1,)
        assert (server.loaded, server.problems()) == ([1], {})
        server.run(server.follower.make_current("news", 3))
        assert disk.repository.pointer("news").history == (1, 3)
        disk.write(1, BAD)
        with pytest.raises(IntegrityError):
            server.run(server.follower.rollback("news"))
        assert (disk.repository.current("news"), server.current) == (3, 3)
        disk.write(1, "one again")
        assert server.run(server.follower.rollback("news")) == 1
        assert server.current == 1
        with pytest.raises(ModelNotFoundError, match="no earlier version"):
            server.run(server.follower.rollback("news"))


def test_traffic_that_the_repository_refuses_costs_no_load(disk: Disk) -> None:
    disk.write(2, "two")
    with following(disk) as server:
        for canary, shadow, told in (
            (2, 2, "version 2 of 'news' is given as canary and as shadow"),
            (2, 1, "version 1 of 'news' is current"),
        ):
            with pytest.raises(ConfigError, match=told):
                server.run(server.follower.set_traffic("news", Canary(canary, 0.1), shadow))
        assert disk.loads == [("news", 1)]
        server.run(server.follower.set_traffic("news", Canary(2, 0.1), None))
        assert disk.loads == [("news", 1), ("news", 2)]


@pytest.mark.parametrize("name", ["", "mail", "../news", "news/1", "a" * 10_000, "news\0"])
def test_changes_of_unknown_models_touch_nothing(disk: Disk, name: str) -> None:
    before = sorted(disk.path.rglob("*"))
    with following(disk) as server:
        for step in (
            server.follower.make_current(name, 1),
            server.follower.rollback(name),
            server.follower.unload(name),
            server.follower.set_traffic(name, None, 1),
        ):
            with pytest.raises(ModelNotFoundError):
                server.run(step)
        for version in (0, -1, 7, 2**63 - 1):
            with pytest.raises(ModelNotFoundError, match="there are: 1"):
                server.run(server.follower.make_current("news", version))
    assert sorted(disk.path.rglob("*")) == before


def test_a_replica_follows_what_another_was_told(disk: Disk) -> None:
    with following(disk) as told, following(disk) as other:
        disk.write(2, "two")
        told.run(told.follower.make_current("news", 2))
        other.look()
        assert other.current == 2


def test_a_version_that_left_is_freed_once_its_calls_are_answered(disk: Disk) -> None:
    with following(disk) as server:
        model = server.registry.ready("news")
        server.around.busy.add(model)
        left = weakref.ref(model)
        del model
        point(disk, 2, "two")
        server.look()
        server.run(asyncio.sleep(0.2))
        assert left() is not None
        server.around.busy.clear()
        server.run(_until_gone(left))


def test_failures_keep_no_model_alive(disk: Disk) -> None:
    with following(disk) as server:
        left = weakref.ref(server.registry.ready("news"))
        point(disk, 2, BAD)
        server.look()
        with suppress(EdgewrightError):
            server.run(server.follower.make_current("news", 2))
        point(disk, 3, "three")
        server.look()
        server.run(_until_gone(left))


@pytest.mark.parametrize("slow", ["to load", "to read"])
def test_a_model_that_is_slow_keeps_no_other_waiting(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    mail = Disk(disk.path, "mail", disk.loads)
    mail.write(1, "one")
    begun, may_end = threading.Event(), threading.Event()

    def held(model: str) -> None:
        if model == "mail" and mail.content(2):
            begun.set()
            assert may_end.wait(30)

    with following(disk) as server:
        place = (server.follower._loader, "_load") if slow == "to load" else (Repository, "pointer")
        plain = getattr(*place)

        def slowly(*arguments: Any) -> Any:
            held(arguments[-1 if slow == "to read" else 0])
            return plain(*arguments)

        monkeypatch.setattr(*place, slowly)
        point(mail, 2, "two")
        watching = server.task(server.follower.watch(0.01))
        server.run(asyncio.to_thread(begun.wait, 30))
        for version in (2, 3):  # one look after another
            point(disk, version, str(version))
            server.run(server.until_current(version))
        assert server.registry.lineup("mail").current == 1  # type: ignore[union-attr]
        may_end.set()
        server.run(server.until_current(2, "mail"))
        assert disk.loads.count(("mail", 2)) == 1
        server.run(_cancelled(watching))


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _until_gone(reference: weakref.ref[Any]) -> None:
    async with asyncio.timeout(30):
        while reference() is not None:
            gc.collect()
            await asyncio.sleep(0.01)


class Versions(RuleBasedStateMachine):
    """Anything may happen to the disk; what answers is what it says, or what answered before."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.disk = Disk(Path(self.folder.name))
        self.serial = 0

    @initialize()
    def begin(self) -> None:
        point(self.disk, 1, "begin")
        self.server = Followed(self.disk)
        self.server.start()
        self.answered: int | None = 1

    def _new(self, kind: str) -> str:
        self.serial += 1
        return f"{kind} {self.serial}"

    @rule(version=st.integers(1, 4), bad=st.booleans())
    def copy(self, version: int, bad: bool) -> None:
        self.disk.write(version, self._new(BAD if bad else "good"))

    @rule(version=st.integers(1, 4))
    def remove(self, version: int) -> None:
        self.disk.remove(version)

    @rule(version=st.integers(1, 4))
    def point(self, version: int) -> None:
        with suppress(EdgewrightError):
            self.disk.repository.make_current("news", version)

    @rule(canary=st.integers(1, 4), shadow=st.integers(1, 4))
    def traffic(self, canary: int, shadow: int) -> None:
        with suppress(EdgewrightError):
            self.disk.repository.set_traffic("news", Canary(canary, 0.5), shadow)

    @rule()
    def roll_back(self) -> None:
        with suppress(EdgewrightError):
            self.disk.repository.rollback("news")

    @rule()
    def unload(self) -> None:
        with suppress(EdgewrightError):
            self.disk.repository.unload("news")

    @rule()
    def corrupt(self) -> None:
        if (self.disk.path / "news").exists():
            self.disk.corrupt_pointer()

    @rule()
    def mend(self) -> None:
        (self.disk.path / "news" / "current.json").unlink(missing_ok=True)

    @rule(version=st.integers(1, 4), command=st.sampled_from(["load", "rollback", "unload"]))
    def command(self, version: int, command: str) -> None:
        before = self.server.current
        follower = self.server.follower
        step: Coroutine[Any, Any, Any]
        if command == "load":
            step = follower.make_current("news", version)
        else:
            step = follower.rollback("news") if command == "rollback" else follower.unload("news")
        try:
            self.server.run(step)
        except EdgewrightError:
            assert self.server.current == before
        else:
            wanted = None if command == "unload" else self.disk.repository.current("news")
            assert self.server.current == wanted
        self.answered = self.server.current

    @rule()
    def look(self) -> None:
        self.server.look()
        self._answers_what_it_should()
        self.answered = self.server.current

    def _answers_what_it_should(self) -> None:
        server = self.server
        try:
            pointer = self.disk.repository.pointer("news")
        except EdgewrightError:
            assert server.current == self.answered
            assert server.current is None or WHOLE_MODEL in server.problems()
            return
        wanted = pointer.history[-1]
        content = self.disk.content(wanted)
        if pointer.unloaded:
            assert server.current is None
        elif content is not None and not content.startswith(BAD):
            assert server.current == wanted
            assert server.registry.ready("news").content == content  # type: ignore[attr-defined]
        elif self.answered is not None:
            assert server.current is not None
            assert wanted in server.problems()

    @invariant()
    def what_answers_is_loaded_and_good(self) -> None:
        lineup = self.server.registry.lineup("news") if hasattr(self, "server") else None
        if lineup is not None:
            assert lineup.current in lineup.versions
            for version in (lineup.canary, lineup.shadow):
                assert version is None or version in lineup.versions.keys() - {lineup.current}
            for model in lineup.versions.values():
                assert not model.content.startswith(BAD)  # type: ignore[attr-defined]

    def teardown(self) -> None:
        if hasattr(self, "server"):
            self.server.close()
        self.folder.cleanup()


TestVersions = Versions.TestCase
TestVersions.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@pytest.fixture
def hung(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Loads begin, and end once it is set."""
    go, plain = threading.Event(), Disk.load

    def load(self: Disk, name: str, version: int) -> Any:
        if version > 1:
            self.loads.append((name, version))
            assert go.wait(60)
        return plain(self, name, version)

    monkeypatch.setattr(Disk, "load", load)
    yield go
    go.set()


def test_loads_that_hang_are_told_until_they_end(
    disk: Disk, hung: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "SLOW_S", 0.01)
    for name in ("a", "b"):
        other = Disk(disk.path, name)
        other.write(1, "one")
        disk.repository.make_current(name, 1)
    with following(disk) as server:
        for name in ("a", "b", "news"):
            Disk(disk.path, name).write(2, "two")
            disk.repository.make_current(name, 2)
        looking = server.task(server.follower.look())

        def at_disk() -> list[str]:
            return sorted(f"{name} version {v}" for name, v in disk.loads if v > 1)

        async def told() -> list[str]:
            async with asyncio.timeout(30):
                while len(server.follower.problems.names()) < 3 or len(at_disk()) < AT_ONCE:
                    await asyncio.sleep(0.01)
            (problem,) = server.problems().values()
            return re.findall(r"\w+ version \d", problem)

        waits, *at_work = server.run(told())
        assert waits == "news version 2"
        assert sorted(at_work) == at_disk()
        assert len(at_work) == AT_ONCE
        assert server.counts.now["news"] == 1
        hung.set()
        server.run(asyncio.wait_for(looking, 30))  # type: ignore[arg-type]
        assert (server.current, server.problems(), server.counts.now["news"]) == (2, {}, 0)


def test_a_load_whose_asker_has_left_stays_one_of_the_few(
    disk: Disk, hung: threading.Event
) -> None:
    for version in range(2, 7):
        disk.write(version, "more")
    with following(disk) as server:
        loader = server.follower._loader
        for version in range(2, 7):
            server.run(ask_and_leave(loader, version))
        server.run(until_begun(disk, 2, 3))
        assert sorted(loader.begun) == [("news", 2), ("news", 3)]
        hung.set()
        assert server.run(loader.load("news", 6, again=True)).model.version == 6


def test_a_version_that_is_asked_for_again_holds_up_no_other(
    disk: Disk, hung: threading.Event
) -> None:
    for version in (2, 3):
        disk.write(version, "more")
    with following(disk) as server:
        loader = server.follower._loader
        for version in (2, 2, 3):
            server.run(ask_and_leave(loader, version))
        server.run(until_begun(disk, 2, 3))
        asking = server.task(loader.load("news", 2, again=True))
        hung.set()
        assert server.run(asyncio.wait_for(asking, 30)).model.version == 2  # type: ignore[arg-type]
        until(lambda: loader.begun == {})  # the other version's load may end later


async def ask_and_leave(loader: Loader, version: int) -> None:
    asking = asyncio.create_task(loader.load("news", version, again=True))
    for _ in range(10):
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def until_begun(disk: Disk, *versions: int) -> None:
    """Until these loads of "news" have begun, and no other."""
    async with asyncio.timeout(30):
        while len(begun := [each for each in disk.loads if each[1] > 1]) < len(versions):
            await asyncio.sleep(0.01)
    assert sorted(begun) == [("news", version) for version in versions]
