"""A load that ended its server is seen at the next start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def test_a_version_that_crashes_the_server_as_it_starts_does_so_once(
    state: Path, tmp_path: Path, start: Start
) -> None:
    repository = tmp_path / "repository"
    for seed in range(2):
        Repository(repository).publish(make_bundle(tmp_path / str(seed), Recipe(seed=seed)), "news")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASH)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    arguments = (
        str(repository),
        *FREE_PORTS,
        "--json",
        "--state-dir",
        str(state),
        "--watch-seconds",
        "0",
    )
    assert start(*arguments, PYTHONPATH=path).wait()[0] == -11
    for _ in range(2):
        server = start(*arguments, PYTHONPATH=path)
        assert classify(server.ready()["port"]).version == 1
        server.popen.terminate()
        code, _, log = server.wait()
        assert code == 0
        assert "news version 2 does not answer: what proves it crashed (SIGSEGV)" in log
    server = start(*arguments)
    assert classify(server.ready()["port"]).version == 2
    assert list((state / "loading").iterdir()) == []
