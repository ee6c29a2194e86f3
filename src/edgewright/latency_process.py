"""Models timed in processes of their own, several times.

What a process draws when it starts (where its memory lies, which cores it gets) moves the ratio of
two models by up to 7%, and ten sessions in one process disturb each other. So a few models at once
are timed in a fresh interpreter, always beside the baseline, and the whole is repeated. A model
that kills its process, or does not answer, takes down nothing but itself.

The two sides meet in a folder: request.json and inputs.npz go in, samples.npz comes out, and the
child keeps in ``progress`` which model it is busy with, so that it can be told when it has died.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any, Final

import numpy as np

from edgewright import huge_pages
from edgewright.backends import get_backend
from edgewright.errors import BackendUnavailableError
from edgewright.latency import (
    Arrays,
    Effort,
    InputMaker,
    Samples,
    Timing,
    Workload,
    summarise,
)
from edgewright.latency_rounds import VARIETY, time_in_turns

AT_ONCE: Final = 6  # sessions in one process, the baseline among them
STALL_S: Final = 300.0  # an engine may be built at loading
_PROGRESS: Final = struct.Struct("<qq")  # calls begun; the place of the model they are for
_NOT_BEGUN: Final = (0, -1)
_START_S: Final = 120.0  # to import what it needs, on a machine that is busy
_LOOK_EACH_S: Final = 1.0
_PR_SET_PDEATHSIG: Final = 1  # of prctl(2)
_REASON_LENGTH: Final = 300  # characters


@dataclass(frozen=True)
class Entrant:
    """A model to time, and how it is served."""

    name: str
    backend: str
    file: Path
    options: Mapping[str, str] = field(default_factory=dict)
    row_by_row: bool = False


@dataclass(frozen=True)
class Measured:
    """What the processes told: a timing of every model, or why there is none."""

    timings: Mapping[str, Timing]
    failures: Mapping[str, str]


@dataclass(frozen=True)
class Death:
    """A process ended without samples."""

    culprit: str | None  # the model that it was busy with; None before it came to any
    reason: str


# Times a few models once, in a process of their own.
Launch = Callable[[Sequence[Entrant]], Samples | Death]


def measure(
    entrants: Sequence[Entrant],
    workload: Workload,
    make_inputs: InputMaker,
    *,
    threads: int,
    effort: Effort | None = None,
    stall_s: float = STALL_S,
) -> Measured:
    """Time models against the first of them, in ``effort.restarts`` processes each.

    Args:
        entrants: the baseline first.
        workload: what to time.
        make_inputs: gives the inputs of a shape.
        threads: of every session.
        effort: how long to measure.
        stall_s: seconds without a call begun after which a process is given up.

    Raises:
        BackendUnavailableError: not even the baseline could be timed; says why.
    """
    effort = effort or Effort()
    processes = len(_groups(entrants)) * effort.restarts
    each = replace(effort, budget_s=effort.budget_s / processes)
    with TemporaryDirectory(prefix="edgewright-latency-") as name:
        folder = Path(name)
        _write_inputs(folder, workload, make_inputs)

        def launch(group: Sequence[Entrant]) -> Samples | Death:
            _write_request(folder, group, workload, threads, each)
            return _in_a_fresh_process(folder, group, workload, stall_s)

        restarts, failures = repeat(entrants, effort.restarts, launch)
    baseline = entrants[0].name
    if not any(baseline in samples for samples in restarts):
        raise BackendUnavailableError(
            f"{baseline} cannot be timed on this host, so nothing can be compared with it: "
            f"{next(iter(failures.values()))}"
        )
    timings = summarise(restarts, baseline, workload, effort.confidence)
    ordered = [each.name for each in entrants if each.name in timings]
    return Measured({name: timings[name] for name in ordered}, failures)


def repeat(
    entrants: Sequence[Entrant], restarts: int, launch: Launch
) -> tuple[list[Samples], dict[str, str]]:
    """Launch every group ``restarts`` times, the groups in turns.

    Where a process dies, the model that it was busy with is tried alone beside the baseline, and
    the others go on without it; where it dies again, that model has failed.

    Returns:
        Samples by process, without those of models that failed; and the reason by failed name.
    """
    jobs = deque((group, restarts) for group in _groups(entrants))
    kept: list[Samples] = []
    failures: dict[str, str] = {}
    while jobs:
        group, left = jobs.popleft()
        told = launch(group)
        if not isinstance(told, Death):
            kept.append(told)
            if left > 1:
                jobs.append((group, left - 1))
        elif len(group) > 2:
            jobs.extend((part, left) for part in _parts(group, told.culprit))
        else:
            failures[group[-1].name] = told.reason
            if len(group) == 2 and not kept and not jobs:
                jobs.append((group[:1], left))  # the baseline is told of even where nothing else is
    return [_without(samples, failures) for samples in kept], failures


def _groups(entrants: Sequence[Entrant]) -> list[list[Entrant]]:
    baseline, *others = entrants
    size = AT_ONCE - 1
    return [[baseline, *others[at : at + size]] for at in range(0, len(others), size)] or [
        [baseline]
    ]


def _parts(group: Sequence[Entrant], culprit: str | None) -> list[list[Entrant]]:
    """The culprit and the others; two halves where it is the baseline or nobody."""
    baseline, *others = group
    alone = [each for each in others if each.name == culprit] or others[: len(others) // 2]
    return [[baseline, *alone], [baseline, *[each for each in others if each not in alone]]]


def _without(samples: Samples, failures: Mapping[str, str]) -> Samples:
    return {name: seconds for name, seconds in samples.items() if name not in failures}


def _write_inputs(folder: Path, workload: Workload, make_inputs: InputMaker) -> None:
    arrays: dict[str, Any] = {
        f"{shape} {index} {name}": array
        for shape in workload.shares
        for index in range(VARIETY)
        for name, array in make_inputs(shape, index).items()
    }
    np.savez(folder / "inputs.npz", **arrays)


def _read_inputs(folder: Path) -> InputMaker:
    found: dict[tuple[str, int], dict[str, Any]] = {}
    with np.load(folder / "inputs.npz", allow_pickle=False) as arrays:
        for key in arrays.files:
            shape, index, name = key.split(" ", 2)
            found.setdefault((shape, int(index)), {})[name] = arrays[key]
    return lambda shape, index: found[str(shape), index]


def _write_request(
    folder: Path, group: Sequence[Entrant], workload: Workload, threads: int, effort: Effort
) -> None:
    request = {
        "parent": os.getpid(),
        "workload": str(workload),
        "threads": threads,
        "effort": asdict(effort),
        "entrants": [{**asdict(each), "file": str(each.file.resolve())} for each in group],
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    (folder / "samples.npz").unlink(missing_ok=True)
    (folder / "progress").write_bytes(_PROGRESS.pack(*_NOT_BEGUN))


def _in_a_fresh_process(
    folder: Path, group: Sequence[Entrant], workload: Workload, stall_s: float
) -> Samples | Death:
    command = [sys.executable, "-P", "-m", "edgewright.latency_process", str(folder)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, **huge_pages.variables(os.environ)},  # as a server has them
    ) as child:  # fmt: skip
        try:
            stderr = _wait(child, folder, stall_s)
        finally:
            child.kill()
    if stderr is None or child.returncode:
        _, place = _progress(folder)
        culprit = group[place].name if place >= 0 else None
        return Death(culprit, _reason(child.returncode, stderr, stall_s))
    with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
        return {
            each.name: {shape: arrays[f"{place} {shape}"] for shape in workload.shares}
            for place, each in enumerate(group)
        }


def _wait(child: subprocess.Popen[bytes], folder: Path, stall_s: float) -> bytes | None:
    """What the child wrote to stderr; None when it has made no progress for ``stall_s``."""
    seen, since = _NOT_BEGUN, time.monotonic()
    while True:
        try:
            return child.communicate(timeout=_LOOK_EACH_S)[1]
        except subprocess.TimeoutExpired:
            progress, now = _progress(folder), time.monotonic()
        patience_s = max(stall_s, _START_S) if progress == _NOT_BEGUN else stall_s
        if progress != seen:
            seen, since = progress, now
        elif now - since > patience_s:
            return None


def _progress(folder: Path) -> tuple[int, int]:
    calls, place = _PROGRESS.unpack((folder / "progress").read_bytes())
    return int(calls), int(place)


def _reason(code: int, stderr: bytes | None, stall_s: float) -> str:
    if stderr is None:
        return f"it did not answer within {stall_s:g} s"
    if code == -signal.SIGKILL:
        return "its process was killed, as the system does when memory runs out"
    if code < 0:
        return f"its process crashed ({signal.Signals(-code).name})"
    lines = stderr.decode("utf-8", "replace").strip().splitlines() or ["its process failed"]
    return shorten(lines[-1], _REASON_LENGTH)


def main(folder: Path) -> None:
    """The child: load what request.json names, time it, and write samples.npz."""
    request = json.loads((folder / "request.json").read_bytes())
    _die_with(request["parent"])
    entrants, workload = request["entrants"], Workload.parse(request["workload"])
    with _telling(folder / "progress") as tell:
        runs = {}
        for place, each in enumerate(entrants):
            tell(place)
            session = get_backend(each["backend"]).load(
                Path(each["file"]), threads=request["threads"], options=each["options"]
            )
            runs[each["name"]] = _told(session.run, place, tell)
        samples = time_in_turns(
            runs,
            workload,
            _read_inputs(folder),
            effort=Effort(**request["effort"]),
            row_by_row={each["name"] for each in entrants if each["row_by_row"]},
        )
    arrays: dict[str, Any] = {
        f"{place} {shape}": samples[each["name"]][shape]
        for place, each in enumerate(entrants)
        for shape in workload.shares
    }
    np.savez(folder / "samples.npz", **arrays)


def _die_with(parent: int) -> None:
    """A run that is killed can end nobody, and a model that hangs would never end by itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the run that asked has ended")


def _told(
    run: Callable[[Arrays], object], place: int, tell: Callable[[int], None]
) -> Callable[[Arrays], object]:
    def told(arrays: Arrays) -> object:
        tell(place)
        return run(arrays)

    return told


@contextmanager
def _telling(file: Path) -> Iterator[Callable[[int], None]]:
    """Writes into shared memory, which outlives a crash and costs a call nothing."""
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), _PROGRESS.size) as shared:
        calls = 0

        def tell(place: int) -> None:
            nonlocal calls
            calls += 1
            _PROGRESS.pack_into(shared, 0, calls, place)

        yield tell


if __name__ == "__main__":
    main(Path(sys.argv[1]))
