"""A run that has not written its checkpoint yet: CHECKPOINT.unfinished, which ``--resume`` reads.

    decided.json             the options, the data's hash, and every choice that was made once
    training-*.safetensors   see ``training_state``

What was measured or tried to make a choice is not measured again: another choice would be another
run. So a choice is written down before it is acted on. The folder goes when the checkpoint is
written.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from edgewright.errors import ConfigError, IntegrityError
from edgewright.finetune.config import FinetuneConfig
from edgewright.finetune.processes import ALONE, Processes
from edgewright.folders import made_folder
from edgewright.manifest import canonical_json, replace_file, sha256_bytes

_DECIDED: Final = "decided.json"
_SUFFIX: Final = ".unfinished"


@dataclass(frozen=True)
class Decisions:
    """What a run decides once.

    Attributes:
        asked: options as they were given, by name.
        resolved: options with every choice made.
        data: hash of the examples.
        cpu: of the host, whose arithmetic the weights depend on.
        processes: how many train together; the weights depend on it likewise.
        cache: ``asdict`` of the ``CacheUse``; None as long as it is open, as with those below.
        depth_cache: likewise, of the depths that ``--freeze auto`` tries.
        depth: ``asdict`` of the ``DepthChoice`` of ``--freeze auto``.
    """

    asked: Mapping[str, Any]
    resolved: Mapping[str, Any]
    data: str
    cpu: str
    processes: int
    cache: Mapping[str, Any] | None = None
    depth_cache: Mapping[str, Any] | None = None
    depth: Mapping[str, Any] | None = None


@dataclass
class Unfinished:
    """A run in work.

    Attributes:
        folder: kept by the first process; None in the others, which keep nothing.
        decisions: of an earlier start, if any, and of this one by and by.
        processes: that make the run.
        is_resumed: whether an earlier start had decided something.
        is_begun: whether there is something to go on from: that, or a training.
    """

    folder: Path | None
    decisions: Decisions | None
    processes: Processes
    is_resumed: bool = field(init=False)
    is_begun: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_resumed = self.is_begun = self.decisions is not None

    def record(self, decisions: Decisions) -> None:
        """Keep what was decided, before it is acted on."""
        self.decisions = decisions
        if self.folder is None:
            return
        record = canonical_json(asdict(decisions))
        body = {"decided": asdict(decisions), "sha256": sha256_bytes(record)}
        replace_file(self.folder / _DECIDED, json.dumps(body).encode())

    def finish(self) -> None:
        """Remove it: the checkpoint is there, or nothing is worth going on with."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def unfinished_folder(target: Path) -> Path:
    """Where a run that writes ``target`` keeps its state."""
    return target.with_name(target.name + _SUFFIX)


@contextmanager
def open_unfinished(
    target: Path, *, resume: bool, overwrite: bool, processes: Processes = ALONE
) -> Iterator[Unfinished]:
    """The state folder of a run that writes ``target``, held against other runs.

    Raises:
        ConfigError: there is one and neither ``resume`` nor ``overwrite`` is given, or another
            run is at work in it.
        IntegrityError: what was decided is damaged.
    """
    if not processes.is_first:
        yield Unfinished(None, processes.by_first(lambda: None), processes)
        return
    folder = unfinished_folder(target)
    if folder.exists() and any(folder.iterdir()) and not (resume or overwrite):
        raise ConfigError(
            f"{folder} holds a run that did not end; go on with --resume, or begin anew with "
            "--overwrite"
        )
    with made_folder(folder), _held(folder):
        if not resume:
            for file in folder.iterdir():
                file.unlink()
        try:
            decisions = processes.by_first(lambda: read_decisions(target))
            unfinished = Unfinished(folder, decisions, processes)
            try:
                yield unfinished
            finally:
                if not unfinished.is_begun:  # and not killed either
                    unfinished.finish()
        finally:
            with suppress(OSError):  # not empty, or gone
                folder.rmdir()  # an empty one, also of an earlier run, is of no use to anybody


def read_decisions(target: Path) -> Decisions | None:
    """What the unfinished run of ``target`` decided; None where there is none, or not yet.

    Raises:
        IntegrityError: it is damaged.
    """
    path = unfinished_folder(target) / _DECIDED
    try:
        body = json.loads(path.read_bytes())
        # As it is written: an earlier edgewright knew fewer decisions.
        if sha256_bytes(canonical_json(body["decided"])) != body["sha256"]:
            raise ValueError("its checksum is another")
        decisions = Decisions(**body["decided"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged ({error}); begin anew with --overwrite") from error
    return decisions


def refuse_other(
    decisions: Decisions, asked: FinetuneConfig, data: str, cpu: str, processes: int
) -> None:
    """Refuse to go on with a run that is not the one that was begun.

    Raises:
        ConfigError: options, examples, CPU or processes differ; all of them are told.
    """
    given, begun = asked.to_mapping(), decisions.asked
    faults = [
        f"--resume: {_told(name, begun)} when the run was begun, and {_told(name, given)} now; "
        "give the same options, or begin anew with --overwrite"
        for name in sorted({*given, *begun})
        if given.get(name) != begun.get(name)
    ]
    if data != decisions.data:
        faults.append(
            "--resume: the examples are not those that the run was begun with; "
            "begin anew with --overwrite"
        )
    if cpu != decisions.cpu:
        faults.append(
            f"--resume: the run was begun on {decisions.cpu}, and this is {cpu}, which rounds "
            "otherwise; go on there, or begin anew with --overwrite"
        )
    if processes != decisions.processes:
        faults.append(
            f"--resume: the run was begun in {decisions.processes} processes, and these are "
            f"{processes}; start as many, or begin anew with --overwrite"
        )
    if faults:
        raise ConfigError(faults)


def _told(name: str, options: Mapping[str, Any]) -> str:
    return f"--{name} was {options[name]}" if name in options else f"--{name} was not given"


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock the folder; the lock goes when the process dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another run is at work on {folder}; wait for it, or choose another path"
            ) from error
        yield
    finally:
        os.close(descriptor)
