"""How much CPU time the cgroups of this process allow it, as a container or a service has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")


def cpu_limit() -> float | None:
    """Cores' worth of time, by the tightest of its own cgroup and those above; None where none is.

    Linux: v2 (cpu.max) and v1 (cpu.cfs_quota_us). Within a container the path of the cgroup may be
    the host's, which is not to be seen there; its limit then stands at the top of what is.
    """
    limits = [limit for folder in _folders() for limit in _limits(folder)]
    return min(limits, default=None)


def _folders() -> Iterator[Path]:
    """Where limits may stand, of either version, from this process's cgroup to the top."""
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    tops = ROOT / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = tops / controllers  # v2 has none there
        folder = top / path.lstrip("/")
        yield folder
        yield from (each for each in folder.parents if each.is_relative_to(top))


def _limits(folder: Path) -> Iterator[float]:
    v1 = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    for words in (_words(folder / "cpu.max"), v1):
        # Without a limit it is "max", or -1.
        if len(words) == 2 and all(each.isdecimal() and int(each) for each in words):
            quota, period = map(int, words)
            yield quota / period


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
