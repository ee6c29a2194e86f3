"""How much of a core a process gets."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgewright.serve.core_time import CoreTime

from .conftest import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is read from Linux's /proc")


def now(process: subprocess.Popen[bytes]) -> CoreTime:
    found = CoreTime.of(process.pid)
    assert found is not None
    return found


def test_a_process_is_seen_to_work_and_to_sleep() -> None:
    command = "while sum(__import__('os').times()[:2]) < 0.3: pass\ninput()"
    with subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE) as process:
        until(lambda: now(process).wants_core)
        until(lambda: now(process).seconds >= 0.3 and not now(process).wants_core)
        process.kill()
        until(lambda: CoreTime.of(process.pid) is None)  # also before its exit code is asked for
    assert CoreTime.of(process.pid) is None


@pytest.mark.parametrize(
    ("wants_core", "got_s", "starves"),
    [(True, 0.05, True), (True, 0.2, False), (False, 0.0, False)],
)
def test_what_wants_a_core_and_gets_little_of_it_starves(
    wants_core: bool, got_s: float, starves: bool
) -> None:
    before = CoreTime(True, 7.0)
    assert CoreTime(wants_core, 7.0 + got_s).starves(before, 2.0, 0.05) == starves
