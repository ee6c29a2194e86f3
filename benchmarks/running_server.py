"""A server's processes: started, awaited, weighed and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from benchmarks.environment import ROOT
from benchmarks.process import RunFailedError

_READY_S: Final = 120.0
_END_S: Final = 20.0
_ORPHANS_END_S: Final = 3.0
_POLL_S: Final = 0.02
_MIB: Final = 2**20


@dataclass(frozen=True)
class RunningServer:
    """A server that has answered.

    Attributes:
        ready_s: from the start of its process to its first right answer.
    """

    process: subprocess.Popen[bytes]
    port: int
    ready_s: float

    def memory_mib(self) -> float:
        """Of all its processes; what they share counts once (proportional set size)."""
        return sum(_proportional_bytes(each.pid) for each in self._tree()) / _MIB

    def cpu_s(self) -> float:
        """Seconds of a core that its processes have used."""
        return sum(_cpu_s(each) for each in self._tree())

    def _tree(self) -> list[psutil.Process]:
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextmanager
def running(
    command: Sequence[str],
    variables: Mapping[str, str],
    port: int,
    answers: Callable[[], bool],
    log: Path,
) -> Iterator[RunningServer]:
    """A server, once ``answers``; its processes have ended afterwards.

    Args:
        answers: whether it answers rightly; may raise OSError where nobody does.

    Raises:
        RunFailedError: it ends, or does not answer in time.
    """
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(command), cwd=ROOT, env={**os.environ, **variables}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        while not (_listens(port) and answers()):
            if process.poll() is not None or time.monotonic() - started > _READY_S:
                raise RunFailedError(f"{why(process.poll())}\n{tail(log)}")
            time.sleep(_POLL_S)
        yield RunningServer(process, port, time.monotonic() - started)
    finally:
        end(process)


def why(code: int | None) -> str:
    """What became of a server that is not ready."""
    return f"no answer within {_READY_S:.0f} s" if code is None else f"ended with exit {code}"


def tail(log: Path, lines: int = 8) -> str:
    """What it said last."""
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-lines:])


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask its processes to end, and kill those that do not."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _, alive = psutil.wait_procs(family, timeout=_ORPHANS_END_S)
    for each in alive:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(alive, timeout=_ORPHANS_END_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # whoever lost its parent


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, no two the same."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def busy_s() -> float:
    """Seconds of cores that this machine has spent at work, for whomever."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        tried.settimeout(1)
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
