"""A load that ended its server is seen at the next start."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgewright.errors import NotReadyError
from edgewright.manifest import SEAL_FILE
from edgewright.repository import Repository
from edgewright.serve.begun_loads import BegunLoads
from edgewright.serve.proof_process import ProofProcess
from edgewright.serve.registry import State

from .bundles import Recipe, make_bundle
from .conftest import Launch
from .processes import FREE_PORTS, Start, classify

ENDS = """
import os, sys
from pathlib import Path
from edgewright.serve.begun_loads import BegunLoads
with BegunLoads(Path(sys.argv[1])).load(Path(sys.argv[2])):
    os._exit(0)
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    made = tmp_path / "sealed"
    made.mkdir()
    (made / SEAL_FILE).write_text("{}")
    return made


def end_within(state: Path, sealed: Path) -> None:
    subprocess.run([sys.executable, "-c", ENDS, str(state), str(sealed)], check=True)


def was_cut_off(state: Path, sealed: Path) -> bool:
    with BegunLoads(state).load(sealed) as found:
        return found


def test_a_load_that_ended_its_process_is_remembered_until_one_succeeds(
    state: Path, sealed: Path
) -> None:
    assert not was_cut_off(state, sealed)
    end_within(state, sealed)
    with pytest.raises(ValueError, match="crashes"), BegunLoads(state).load(sealed) as found:
        assert found
        raise ValueError("crashes")
    assert was_cut_off(state, sealed)
    assert not was_cut_off(state, sealed)
    assert list((state / "loading").iterdir()) == []


def test_a_load_that_fails_in_a_process_that_goes_on_was_not_cut_off(
    state: Path, sealed: Path
) -> None:
    with pytest.raises(ValueError, match="bad"), BegunLoads(state).load(sealed):
        raise ValueError("bad")
    assert not was_cut_off(state, sealed)


def test_a_load_that_lacks_the_memory_of_another_process_is_tried_without_one(
    state: Path, sealed: Path
) -> None:
    """Or a version that was killed once, by whomever, might never answer again."""
    end_within(state, sealed)
    with pytest.raises(NotReadyError), BegunLoads(state).load(sealed):
        raise NotReadyError("what proves it was killed")
    assert not was_cut_off(state, sealed)


def test_another_bundle_is_another_load(state: Path, sealed: Path) -> None:
    end_within(state, sealed)
    (sealed / SEAL_FILE).write_text("{ }")
    assert not was_cut_off(state, sealed)


def test_who_loads_beside_another_changes_nothing(state: Path, sealed: Path) -> None:
    with BegunLoads(state).load(sealed):
        assert not was_cut_off(state, sealed)
        end_within(state, sealed)
    assert not was_cut_off(state, sealed)


def test_of_a_load_that_was_cut_off_all_hear_who_load_at_once(state: Path, sealed: Path) -> None:
    end_within(state, sealed)
    with BegunLoads(state).load(sealed) as first, BegunLoads(state).load(sealed) as second:
        assert (first, second) == (True, True)
    assert not was_cut_off(state, sealed)


def test_a_load_that_another_ended_well_at_the_same_moment_was_not_cut_off(
    state: Path, sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def end_before(file: Any, how: int) -> None:
        Path(file.name).unlink(missing_ok=True)
        lock(file, how)

    end_within(state, sealed)
    monkeypatch.setattr(fcntl, "flock", end_before)
    assert not was_cut_off(state, sealed)


def test_a_load_succeeds_though_it_cannot_be_forgotten(state: Path, sealed: Path) -> None:
    with BegunLoads(state).load(sealed):
        (file,) = (state / "loading").iterdir()
        file.unlink()
        file.mkdir()
    assert file.is_dir()


def test_without_a_folder_or_a_seal_nothing_is_remembered(state: Path, sealed: Path) -> None:
    state.write_text("a file")
    end_within(state, sealed)
    assert not was_cut_off(state, sealed)
    assert not was_cut_off(state, sealed / "nowhere")


def test_on_a_full_disk_nothing_is_remembered(state: Path, sealed: Path) -> None:
    end_within(state, sealed)
    (file,) = (state / "loading").iterdir()
    file.unlink()
    file.symlink_to("/dev/full")
    assert not was_cut_off(state, sealed)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no core is left to others")
def test_what_proves_a_version_before_anybody_is_answered_waits_for_no_idle_core(
    state: Path, sealed: Path, launch: Launch
) -> None:
    """Or whoever was killed for being slow would be slower still at the next start."""
    server = launch(state_dir=state).server
    server.registry.state = State.LOADING
    end_within(state, sealed)
    with server._loading(sealed) as background, ProofProcess(background) as process:
        assert process.run(partial(os.sched_getscheduler, 0)) == os.SCHED_OTHER
    assert server._background.no_core_idle_until == 0.0  # later versions do


# In whatever process: reading this file is a crash.
CRASH = """
import os, resource, sys
def crash(event, arguments):
    if event == "open" and str(arguments[0]).endswith("news/2/variants/fp32.onnx"):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), 11)
sys.addaudithook(crash)
"""


def crashing_second(state: Path, tmp_path: Path) -> tuple[str, ...]:
    """What a server is told of two versions, of which the second crashes as ``CRASH`` says."""
    repository = tmp_path / "repository"
    for seed in range(2):
        Repository(repository).publish(make_bundle(tmp_path / str(seed), Recipe(seed=seed)), "news")
    folder = ("--state-dir", str(state))
    return (str(repository), *FREE_PORTS, "--json", *folder, "--watch-seconds", "0")


def crash_on(tmp_path: Path) -> str:
    """The PYTHONPATH of a server that reads ``CRASH`` first."""
    site = tmp_path / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(CRASH)
    return os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])


def test_a_version_that_crashes_the_server_as_it_starts_does_so_once(
    state: Path, tmp_path: Path, start: Start
) -> None:
    arguments = crashing_second(state, tmp_path)
    assert start(*arguments, PYTHONPATH=crash_on(tmp_path)).wait()[0] == -11
    for _ in range(2):
        server = start(*arguments, PYTHONPATH=crash_on(tmp_path))
        assert classify(server.ready()["port"]).version == 1
        server.popen.terminate()
        code, _, log = server.wait()
        assert code == 0
        assert "news version 2 does not answer: what proves it crashed (SIGSEGV)" in log
    server = start(*arguments)
    assert classify(server.ready()["port"]).version == 2
    assert list((state / "loading").iterdir()) == []


def test_of_several_processes_none_crashes_beside_another_that_is_careful(
    state: Path, tmp_path: Path, start: Start
) -> None:
    """All but the first load at the same time."""
    arguments = crashing_second(state, tmp_path)
    assert start(*arguments, PYTHONPATH=crash_on(tmp_path)).wait()[0] == -11
    server = start(*arguments, "--processes", "4", PYTHONPATH=crash_on(tmp_path))
    assert classify(server.ready()["port"]).version == 1
    server.popen.terminate()
    assert server.wait()[0] == 0
