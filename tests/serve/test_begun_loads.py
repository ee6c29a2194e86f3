"""A load that ended its server is seen at the next start."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgewright.manifest import SEAL_FILE
from edgewright.repository import Repository
from edgewright.serve.begun_loads import BegunLoads

from .bundles import Recipe, make_bundle
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
def bundle(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    made.mkdir()
    (made / SEAL_FILE).write_text("{}")
    return made


def end_within(state: Path, bundle: Path) -> None:
    subprocess.run([sys.executable, "-c", ENDS, str(state), str(bundle)], check=True)


def was_cut_off(state: Path, bundle: Path) -> bool:
    with BegunLoads(state).load(bundle) as found:
        return found


def test_a_load_that_ended_its_process_is_remembered_until_one_succeeds(
    state: Path, bundle: Path
) -> None:
    assert not was_cut_off(state, bundle)
    end_within(state, bundle)
    with pytest.raises(ValueError, match="crashes"), BegunLoads(state).load(bundle) as found:
        assert found
        raise ValueError("crashes")
    assert was_cut_off(state, bundle)
    assert not was_cut_off(state, bundle)
    assert list((state / "loading").iterdir()) == []


def test_a_load_that_fails_in_a_process_that_goes_on_was_not_cut_off(
    state: Path, bundle: Path
) -> None:
    with pytest.raises(ValueError, match="bad"), BegunLoads(state).load(bundle):
        raise ValueError("bad")
    assert not was_cut_off(state, bundle)


def test_another_bundle_is_another_load(state: Path, bundle: Path) -> None:
    end_within(state, bundle)
    (bundle / SEAL_FILE).write_text("{ }")
    assert not was_cut_off(state, bundle)


def test_who_loads_beside_another_changes_nothing(state: Path, bundle: Path) -> None:
    with BegunLoads(state).load(bundle):
        assert not was_cut_off(state, bundle)
        end_within(state, bundle)
    assert not was_cut_off(state, bundle)


def test_of_a_load_that_was_cut_off_all_hear_who_load_at_once(state: Path, bundle: Path) -> None:
    end_within(state, bundle)
    with BegunLoads(state).load(bundle) as first, BegunLoads(state).load(bundle) as second:
        assert (first, second) == (True, True)
    assert not was_cut_off(state, bundle)


def test_a_load_that_another_ended_well_at_the_same_moment_was_not_cut_off(
    state: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def end_before(file: Any, how: int) -> None:
        Path(file.name).unlink(missing_ok=True)
        lock(file, how)

    end_within(state, bundle)
    monkeypatch.setattr(fcntl, "flock", end_before)
    assert not was_cut_off(state, bundle)


def test_a_load_succeeds_though_it_cannot_be_forgotten(state: Path, bundle: Path) -> None:
    with BegunLoads(state).load(bundle):
        (file,) = (state / "loading").iterdir()
        file.unlink()
        file.mkdir()
    assert file.is_dir()


def test_without_a_folder_or_a_seal_nothing_is_remembered(state: Path, bundle: Path) -> None:
    state.write_text("a file")
    end_within(state, bundle)
    assert not was_cut_off(state, bundle)
    assert not was_cut_off(state, bundle / "nowhere")


def test_on_a_full_disk_nothing_is_remembered(state: Path, bundle: Path) -> None:
    end_within(state, bundle)
    (file,) = (state / "loading").iterdir()
    file.unlink()
    file.symlink_to("/dev/full")
    assert not was_cut_off(state, bundle)


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
