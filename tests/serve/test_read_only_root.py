"""A server as containers run it: nothing can be written but what is mounted, and nobody knows it.

It has a user without a name and without a home, and a root file system that is read-only, /tmp and
/dev/shm among it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .families import Start as StartTwo
from .processes import FREE_PORTS, Start, classify, page

CONFINED = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mount -t tmpfs -o ro tmpfs /dev/shm
mount -o remount,ro,bind /
shift
exec unshare --user --map-user=10001 --map-group=10001 env -u HOME "$@"
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """What may be written."""
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def confined(state: Path) -> tuple[str, ...]:
    """Runs a command so; the test is skipped where nobody may."""
    command = ("unshare", "--mount", "sh", "-c", CONFINED, "sh", str(state))
    script = (
        "import os, pathlib, tempfile\n"
        "assert os.getuid() == 10001\n"
        "try: pathlib.Path.home()\n"
        "except RuntimeError: pass\n"
        "else: raise SystemExit('there is a home')\n"
        "try: tempfile.gettempdir()\n"
        "except FileNotFoundError: pass\n"
        "else: raise SystemExit('something else can be written')\n"
    )
    unshare = subprocess.run([*command, "true"], capture_output=True, text=True)
    if unshare.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {unshare.stderr.strip()}")
    subprocess.run([*command, sys.executable, "-c", script], check=True, cwd="/proc")
    return command


def test_it_measures_and_answers_with_a_state_folder_alone(
    start: Start, repository: Path, state: Path, confined: tuple[str, ...]
) -> None:
    options = ("--remeasure", "always", "--state-dir", str(state))
    process = start(str(repository), *FREE_PORTS, "--json", *options, within=confined)
    told = process.ready()
    assert classify(told["port"]).classifications
    assert page(told["metrics_port"], "/readyz")[0] == 200
    process.popen.terminate()
    assert process.wait() == (0, "", "")


def test_it_warns_and_goes_on_where_nothing_can_be_kept(
    start: Start, repository: Path, confined: tuple[str, ...]
) -> None:
    options = ("--json", "--remeasure", "always")
    process = start(str(repository), *FREE_PORTS, *options, within=confined)
    assert classify(process.ready()["port"]).classifications
    process.popen.terminate()
    code, _, err = process.wait()
    assert code == 0
    assert "--state-dir" in err
    assert "Traceback" not in err


def test_several_processes_need_no_more(
    start_two: StartTwo, repository: Path, confined: tuple[str, ...]
) -> None:
    family = start_two(repository, within=confined).announced()
    assert len(family.nodes()) == 2
    family.popen.terminate()
    assert family.wait() == (0, "", "")
