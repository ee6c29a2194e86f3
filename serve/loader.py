"""Versions loaded beside the event loop, few at a time; what failed is not tried again in vain."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgewright.errors import (
    ArtifactError,
    BackendUnavailableError,
    EdgewrightError,
    IntegrityError,
    ModelNotFoundError,
)
from edgewright.manifest import SEAL_FILE, sha256_bytes
from edgewright.repository import Repository
from edgewright.serve.models import ServedModel

Load = Callable[[str, int], ServedModel]
Key = tuple[str, int]  # a model's name and a version
AT_ONCE: Final = 2  # one that is slow or hangs holds up no other model
_AGAIN_S: Final = 60.0  # until what failed for no reason of its files is tried again

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A version that answers, and the seal that its folder had."""

    model: ServedModel
    seal: str


@dataclass(frozen=True)
class _Failure:
    """Why a version does not answer; no exception, for its frames would keep the model."""

    state: str  # of its folder
    kind: type[EdgewrightError]
    message: str
    again_at: float  # by the clock; what is wrong with the files stays wrong until they change

    def error(self) -> EdgewrightError:
        return self.kind(self.message)


@dataclass(frozen=True)
class _Attempt:
    """A version that is being loaded."""

    task: asyncio.Task[Loaded | _Failure]
    since: datetime


class Loader:
    """Loads what is asked for; what it has loaded is its caller's."""

    def __init__(
        self,
        repository: Repository,
        load: Load,
        refused: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``load`` verifies, proves and warms up one version; it is called in a thread.

        ``refused`` is told the model of each version that was tried and does not answer.
        """
        self._repository = repository
        self._load = load
        self._refused = refused
        self._clock = clock
        self._few = asyncio.Semaphore(AT_ONCE)
        self._failures: dict[Key, _Failure] = {}
        self._attempts: dict[Key, _Attempt] = {}
        self._closed = False

    @property
    def begun(self) -> dict[Key, datetime]:
        """What is being loaded, since when."""
        return {key: each.since for key, each in self._attempts.items()}

    async def load(self, name: str, version: int, *, again: bool) -> Loaded:
        """Load one version; without ``again`` not one that failed and has not changed since.

        Who asks may leave. A thread cannot: what it has begun stays one of the few until it ends,
        and whoever asks for the same meanwhile waits for that first.

        Raises:
            EdgewrightError: it does not answer; says why.
        """
        key = (name, version)
        await self._few.acquire()
        while (before := self._attempts.get(key)) is not None:
            self._few.release()
            await asyncio.wait((before.task,))
            await self._few.acquire()
        attempt = asyncio.create_task(self._attempt(name, version, again))
        self._attempts[key] = _Attempt(attempt, datetime.now(UTC))
        attempt.add_done_callback(lambda _: self._attempts.pop(key))
        outcome = await asyncio.shield(attempt)
        if isinstance(outcome, _Failure):
            raise outcome.error()
        return outcome

    def close(self) -> None:
        """Tell of nothing that fails from now on: the server stops, and gives it up."""
        self._closed = True

    async def _attempt(self, name: str, version: int, again: bool) -> Loaded | _Failure:
        state = ""
        try:
            state = await asyncio.to_thread(self._state, name, version)
            failure = self._failures.get((name, version))
            if not (again or failure is None or self._has_changed(failure, state)):
                return failure
            loaded = await asyncio.to_thread(self._loaded, name, version)
        except Exception as error:  # an edge: no bundle may stop those that answer
            return self._failed(name, version, state, error)
        finally:
            self._few.release()
        self._failures.pop((name, version), None)
        return loaded

    def seal(self, name: str, version: int) -> str:
        """What tells the bundle's content from another's; empty where it has no seal yet."""
        try:
            return sha256_bytes((self._folder(name, version) / SEAL_FILE).read_bytes())
        except OSError:
            return ""

    def _state(self, name: str, version: int) -> str:
        """What changes when any file of the folder does, also while it is being copied."""
        return f"{self.seal(name, version)} {_listing(self._folder(name, version))}"

    def _folder(self, name: str, version: int) -> Path:
        return self._repository.path / name / str(version)

    def _loaded(self, name: str, version: int) -> Loaded:
        seal = self.seal(name, version)
        return Loaded(self._load(name, version), seal)

    def _has_changed(self, failure: _Failure, state: str) -> bool:
        return failure.state != state or self._clock() >= failure.again_at

    def _failed(self, name: str, version: int, state: str, error: Exception) -> _Failure:
        where = f"{name} version {version}"
        if isinstance(error, ArtifactError | ModelNotFoundError | BackendUnavailableError):
            failure = _Failure(state, type(error), str(error), float("inf"))
        else:  # want of memory or a network disk, it may be
            known = isinstance(error, EdgewrightError)
            if not self._closed:
                log.error("%s cannot be loaded", where, exc_info=None if known else error)
            message = f"{where} cannot be loaded: {error if known else repr(error)}"
            failure = _Failure(state, IntegrityError, message, self._clock() + _AGAIN_S)
        self._failures[name, version] = failure
        self._refused(name)
        return failure


def _listing(folder: Path) -> str:
    lines = []
    for file in sorted(folder.rglob("*")):
        try:
            found = file.stat()
        except OSError:  # it is gone again, or points nowhere
            continue
        lines.append(f"{file} {found.st_size} {found.st_mtime_ns} {found.st_ino}")
    return sha256_bytes("\n".join(lines).encode(errors="surrogateescape"))
