"""How much of a core a process gets."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgewright.serve.core_time import CoreTime

from .conftest import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is read from Linux's /proc")


# Until it is told a line, and for a third of a second at least.
WORKS = """
import os, select, sys
while not select.select([sys.stdin], [], [], 0)[0] or sum(os.times()[:2]) < 0.3:
    pass
input()
input()
"""


def now(process: subprocess.Popen[bytes]) -> CoreTime:
    found = CoreTime.of(process.pid)
    assert found is not None
    return found


def test_a_process_is_seen_to_work_and_to_sleep() -> None:
    with subprocess.Popen([sys.executable, "-c", WORKS], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        until(lambda: now(process).wants_core)
        process.stdin.write(b"\n")
        process.stdin.flush()
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
