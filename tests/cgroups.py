"""Trees of /proc and /sys as processes of several kinds see them, with a limit of CPU time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

PERIOD_US: Final = 100_000


def container_of_v2(root: Path, cores: float | None) -> None:
    """Its cgroup is all that it sees."""
    _in_cgroup(root, "0::/\n")
    _v2(root / "sys/fs/cgroup", cores)


def service_of_v2(root: Path, cores: float | None) -> None:
    """As systemd starts one, with CPUQuota=."""
    _in_cgroup(root, "0::/system.slice/edgewright.service\n")
    _v2(root / "sys/fs/cgroup/system.slice/edgewright.service", cores)
    _v2(root / "sys/fs/cgroup/system.slice", None)


def container_of_v1(root: Path, cores: float | None) -> None:
    """It reads the host's path, of which it sees no more than the end."""
    _in_cgroup(root, "11:cpu,cpuacct:/docker/4f3a\n4:memory:/docker/4f3a\n1:cpuset:/docker/4f3a\n")
    _v1(root / "sys/fs/cgroup/cpu,cpuacct", cores)


def service_of_v1(root: Path, cores: float | None) -> None:
    """Beside a v2 that holds no controller, as hybrid systems have it."""
    _in_cgroup(root, "4:memory:/\n2:cpu:/edgewright\n0::/system.slice/edgewright.service\n")
    _v1(root / "sys/fs/cgroup/cpu/edgewright", cores)
    _v1(root / "sys/fs/cgroup/cpu", None)
    (root / "sys/fs/cgroup/unified/system.slice/edgewright.service").mkdir(parents=True)


PLACES: Final[Mapping[str, Callable[[Path, float | None], None]]] = {
    each.__name__: each for each in (container_of_v2, service_of_v2, container_of_v1, service_of_v1)
}


def _in_cgroup(root: Path, lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)


def _v2(folder: Path, cores: float | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    quota = "max" if cores is None else int(cores * PERIOD_US)
    (folder / "cpu.max").write_text(f"{quota} {PERIOD_US}\n")


def _v1(folder: Path, cores: float | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    quota = -1 if cores is None else int(cores * PERIOD_US)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{PERIOD_US}\n")
