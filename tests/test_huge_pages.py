"""Huge pages: who asks for them, when it would be in vain, and that a server has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgewright import huge_pages

NEW, ENABLED = "glibc 2.36", "GLIBC_TUNABLES"
SHOW = "import os; print(os.environ.get('GLIBC_TUNABLES'), os.getpid())"


@pytest.fixture
def on_request(tmp_path: Path) -> Path:
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never\n")
    return file


@pytest.mark.parametrize(
    ("libc", "asked"),
    [("glibc 2.36", True), ("glibc 2.35", True), ("glibc 3.0", True), ("glibc 2.34", False),
     ("glibc 2.9", False), ("musl 1.2", False), ("glibc", False), ("glibc 2.x", False),
     ("", False)],
)  # fmt: skip
def test_only_a_c_library_that_knows_the_tunable_is_asked(
    on_request: Path, libc: str, asked: bool
) -> None:
    assert bool(huge_pages.variables({}, on_request, libc)) is asked


@pytest.mark.parametrize("mode", ["[always] madvise never", "always madvise [never]", ""])
def test_nobody_asks_where_the_kernel_gives_them_to_all_or_to_none(
    tmp_path: Path, mode: str
) -> None:
    file = tmp_path / "enabled"
    file.write_text(mode)
    assert huge_pages.variables({}, file, NEW) == {}
    assert huge_pages.variables({}, tmp_path / "none", NEW) == {}


def test_what_the_user_has_set_stays(on_request: Path) -> None:
    asked = huge_pages.variables({ENABLED: "glibc.malloc.check=1"}, on_request, NEW)
    assert asked == {ENABLED: "glibc.malloc.check=1:glibc.malloc.hugetlb=1"}
    assert huge_pages.variables({ENABLED: "glibc.malloc.hugetlb=0"}, on_request, NEW) == {}


def test_a_process_starts_again_once_with_all_that_it_was_told(on_request: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgewright import huge_pages as h;"
        f"h.variables.__defaults__ = (Path({str(on_request)!r}), {NEW!r});"
        f"print(sys.argv, flush=True); h.start_again(); {SHOW}"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, "a b", "--c"],
        stdout=subprocess.PIPE, text=True, env={},
    )  # fmt: skip
    told = child.communicate(timeout=60)[0].splitlines()
    assert told == ["['-c', 'a b', '--c']"] * 2 + [f"glibc.malloc.hugetlb=1 {child.pid}"]


def test_a_process_whose_tunable_is_taken_away_asks_once_and_nobody_is_told(
    on_request: Path,
) -> None:
    """As glibc takes it from a program with more rights than its user."""
    code = (
        "import os, sys; os.environ.pop('GLIBC_TUNABLES', None);"
        "from pathlib import Path; from edgewright import huge_pages as h;"
        f"h.variables.__defaults__ = (Path({str(on_request)!r}), {NEW!r});"
        "print('begun'); print('as well', file=sys.stderr); h.start_again();"
        "print([each for each in os.environ if 'EDGEWRIGHT' in each])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={}, timeout=60
    )
    assert done.stdout.splitlines() == ["begun", "begun", "[]"]
    assert done.stderr.splitlines() == ["as well"] * 2
