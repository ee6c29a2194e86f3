"""The repository that serve answers from: ``REPOSITORY/<model>/<version>/`` holds bundles.

repository/
  news/
    1/  2/  3/       bundles, never changed once published
    current.json     which version is served, which were before it, and what others get (pointer)
"""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from edgewright.bundle import Bundle
from edgewright.errors import ConfigError, IntegrityError, ModelNotFoundError
from edgewright.manifest import HASHED_AT_ONCE, new_folder, replace_file
from edgewright.pointer import Canary, Pointer

CURRENT_FILE: Final = "current.json"
LOCK_FILE: Final = ".lock"
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")  # as an int64 of the API; 0 means "current"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Repository:
    """A folder of models, each a folder of numbered versions."""

    path: Path

    def models(self) -> list[str]:
        """Names of the models that have a version to serve, sorted."""
        if not self.path.is_dir():
            raise ModelNotFoundError(
                f"no repository at {self.path}; fill one with "
                f"`edgewright publish BUNDLE {self.path} --name NAME`"
            )
        return sorted(
            child.name
            for child in self.path.iterdir()
            if _NAME.fullmatch(child.name) and self._versions(child)
        )

    def versions(self, model: str) -> list[int]:
        """Versions of ``model``, ascending.

        Raises:
            ModelNotFoundError: there is no such model.
        """
        versions = self._versions(self.path / model) if _NAME.fullmatch(model) else []
        if not versions:
            known = ", ".join(self.models()) or "none"
            raise ModelNotFoundError(f"no model {model!r} in {self.path}; it holds: {known}")
        return versions

    def current(self, model: str) -> int:
        """The version that is served: the pointer's, or the highest where there is no pointer."""
        return self.pointer(model).history[-1]

    def pointer(self, model: str) -> Pointer:
        """What is to be served of ``model``; its history ends with the current version.

        Raises:
            ModelNotFoundError: there is no such model.
            IntegrityError: current.json was altered, or names a current version that is missing.
        """
        pointer = self._written(model)
        versions, current = self.versions(model), pointer.history[-1]
        if current not in versions and not pointer.unloaded:
            raise IntegrityError(
                f"{self.path / model / CURRENT_FILE} names version {current}, which is missing; "
                f"there are: {', '.join(map(str, versions))}; put it back, or make another current "
                "with `edgewright rollback` or `edgewright admin load`"
            )
        return pointer

    def previous(self, model: str) -> int:
        """The version that a rollback would make current.

        Raises:
            ModelNotFoundError: there is no such model, or no version before the current one.
        """
        versions = self.versions(model)
        history = self._pointer(model).history
        earlier = [each for each in history if each != history[-1] and each in versions]
        if not earlier:
            raise ModelNotFoundError(f"{model!r} has no earlier version to go back to")
        return earlier[-1]

    def folder(self, model: str, version: int) -> Path:
        """Where one version lies.

        Raises:
            ModelNotFoundError: there is no such model or version.
        """
        versions = self.versions(model)
        if version not in versions:
            known = ", ".join(map(str, versions))
            raise ModelNotFoundError(f"no version {version} of {model!r}; there are: {known}")
        return self.path / model / str(version)

    def bundle(self, model: str, version: int, *, files_at_once: int = HASHED_AT_ONCE) -> Bundle:
        """The verified bundle of one version; ``files_at_once`` are hashed.

        Raises:
            ModelNotFoundError: there is no such model or version.
            IntegrityError: its bytes differ from its seal.
        """
        return Bundle.open(self.folder(model, version), files_at_once=files_at_once)

    def publish(self, bundle: Path, model: str, *, keep_current: bool = False) -> int:
        """Copy a verified bundle in as the next version and make it current.

        With ``keep_current`` the version that is current, where there is one, stays so.

        Raises:
            ConfigError: the name is not one that fits a folder and a URL.
            ArtifactNotFoundError, IntegrityError: as ``Bundle.open``.
        """
        if not _NAME.fullmatch(model):
            raise ConfigError(
                f"--name {model!r}: use 1 to 63 of a-z, 0-9, '.', '_' and '-', "
                "beginning with a letter or digit"
            )
        Bundle.open(bundle)
        with self._locked(model):
            taken = self._versions(self.path / model)
            pointer = self._pointer(model)
            pointer = pointer if pointer.history else Pointer(tuple(taken[-1:]))
            version = taken[-1] + 1 if taken else 1
            with new_folder(self.path / model / str(version)) as staging:
                _copy(bundle, staging)
            self._write(model, pointer if keep_current and taken else pointer.to(version))
        return version

    def rollback(self, model: str, to: int | None = None) -> int:
        """Make a version that was current before this one current again, and return it.

        Args:
            model: its name.
            to: the version, for whoever has looked at ``previous``; None for what that is now.

        Raises:
            ModelNotFoundError: there is no such model, or no version before the current one.
        """
        self.versions(model)
        with self._locked(model):
            version = self.previous(model) if to is None else to
            pointer = self._pointer(model)
            if version not in pointer.history:
                raise ModelNotFoundError(
                    f"version {version} of {model!r} is not among those before the current one any "
                    "more: somebody else has rolled it back"
                )
            self._write(model, pointer.back_to(version))
        return version

    def make_current(self, model: str, version: int) -> None:
        """Serve ``version``, and with it a model that was unloaded.

        Raises:
            ModelNotFoundError: there is no such model or version.
        """
        with self._changing(model, version) as pointer:
            self._write(model, pointer.to(version))

    def unload(self, model: str) -> None:
        """Serve ``model`` no more until a version of it is made current; nothing is deleted.

        Raises:
            ModelNotFoundError: there is no such model.
        """
        with self._changing(model) as pointer:
            self._write(model, Pointer(pointer.history, unloaded=True))

    def set_traffic(self, model: str, canary: Canary | None, shadow: int | None) -> None:
        """Say which versions, beside the current one, get a share or a copy of the calls.

        Raises:
            ModelNotFoundError: there is no such model or version.
            ConfigError: the current version is named, or one version for both.
        """
        self.versions(model)
        with self._locked(model):
            self._write(model, self.with_traffic(model, canary, shadow))

    def with_traffic(self, model: str, canary: Canary | None, shadow: int | None) -> Pointer:
        """The pointer that ``set_traffic`` would write; raises as it does, and changes nothing."""
        versions = [each for each in (canary.version if canary else None, shadow) if each]
        for version in versions:
            self.folder(model, version)
        pointer = self.pointer(model)
        faults = [
            f"version {each} of {model!r} is current; name another for canary or shadow"
            for each in versions
            if each == pointer.history[-1]
        ]
        if len(set(versions)) < len(versions):
            faults.append(f"version {shadow} of {model!r} is given as canary and as shadow")
        if faults:
            raise ConfigError(faults)
        return replace(pointer, canary=canary, shadow=shadow)

    @contextmanager
    def _changing(self, model: str, *versions: int) -> Iterator[Pointer]:
        """The pointer, under the lock; ``versions`` must be there, the current one need not."""
        self.versions(model)
        with self._locked(model):
            for version in versions:
                self.folder(model, version)
            yield self._written(model)

    @contextmanager
    def _locked(self, model: str) -> Iterator[None]:
        """One writer of a model at a time; a lock goes with the process that holds it."""
        folder = self.path / model
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK_FILE).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _written(self, model: str) -> Pointer:
        """With a history, whose last version may be missing."""
        versions, pointer = self.versions(model), self._pointer(model)
        return pointer if pointer.history else replace(pointer, history=(versions[-1],))

    def _pointer(self, model: str) -> Pointer:
        """As it was written; empty where nothing was."""
        file = self.path / model / CURRENT_FILE
        try:
            return Pointer.from_bytes(file.read_bytes())
        except FileNotFoundError:
            return Pointer()
        except ValueError as error:
            raise IntegrityError(
                f"{file} was altered; remove it to serve the highest version"
            ) from error

    def _write(self, model: str, pointer: Pointer) -> None:
        replace_file(self.path / model / CURRENT_FILE, pointer.to_bytes())

    @staticmethod
    def _versions(model_folder: Path) -> list[int]:
        if not model_folder.is_dir():
            return []
        return sorted(
            int(child.name)
            for child in model_folder.iterdir()
            if _VERSION.fullmatch(child.name) and child.is_dir()
        )


def _copy(bundle: Path, staging: Path) -> None:
    """OSError of the first file that is not taken: ``shutil.Error`` tells of every one."""
    try:
        shutil.copytree(bundle, staging, dirs_exist_ok=True)
    except shutil.Error as error:
        (_, _, reason), *_ = error.args[0]
        raise OSError(
            f"{bundle} cannot be copied: {reason}; make room, or give a folder that can be written"
        ) from error
