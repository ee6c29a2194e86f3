"""Huge pages for the memory that a model computes in, where Linux gives them to those who ask.

A run goes through all weights and some megabytes between them. In pages of 4 KiB that is more than
a core remembers the addresses of, and a virtual machine looks each of them up twice. The C library
asks for pages of 2 MiB where ``glibc.malloc.hugetlb`` is 1 among its tunables, which it reads once,
when a process starts; results are the same to the bit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

# "always [madvise] never", for example: with "always" nobody need ask, with "never" it is in vain.
MODE_FILE: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ON_REQUEST: Final = "[madvise]"
_TUNABLES: Final = "GLIBC_TUNABLES"
_TUNABLE: Final = "glibc.malloc.hugetlb"
_SINCE: Final = (2, 35)  # of glibc
# Tells the process that it was started again. Where a program has more rights than its user (file
# capabilities, setgid) glibc takes the tunable out of the environment, and it would ask for ever.
_ASKED: Final = "EDGEWRIGHT_ASKED_FOR_HUGE_PAGES"


def variables(
    environment: Mapping[str, str], mode_file: Path = MODE_FILE, libc: str | None = None
) -> dict[str, str]:
    """What a process needs in its environment beside ``environment`` to have huge pages.

    Empty where that would change nothing, and where the tunable is set already, to whatever.

    Args:
        environment: that it would get.
        mode_file: where the kernel tells to whom it gives them.
        libc: as "glibc 2.36"; None: look.
    """
    tunables = environment.get(_TUNABLES, "")
    if _TUNABLE in tunables or not _has_tunable(_libc() if libc is None else libc):
        return {}
    try:
        mode = mode_file.read_text()
    except OSError:  # no Linux, or one without huge pages
        return {}
    if _ON_REQUEST not in mode:
        return {}
    return {_TUNABLES: ":".join(each for each in (tunables, f"{_TUNABLE}=1") if each)}


def start_again() -> None:
    """Become the same command with huge pages, where it has none and can have them.

    The process keeps its id, its arguments and its open standard streams. It asks once.
    """
    if os.environ.pop(_ASKED, None) is not None:  # and what it starts is not told
        return
    more = variables(os.environ)
    if not more or not sys.executable:
        return
    for stream in filter(None, (sys.stdout, sys.stderr)):  # what they hold would be lost
        with suppress(OSError, ValueError):
            stream.flush()
    again = {**os.environ, **more, _ASKED: "1"}
    with suppress(OSError):  # not allowed here: it goes without
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], again)


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # not glibc
        return ""


def _has_tunable(libc: str) -> bool:
    name, _, version = libc.partition(" ")
    parts = version.split(".")
    if name != "glibc" or not all(each.isdecimal() for each in parts):
        return False
    return tuple(int(each) for each in parts) >= _SINCE
