"""The repository that serve answers from: ``REPOSITORY/<model>/<version>/`` holds bundles.

repository/
  news/
    1/  2/  3/       bundles, never changed once published
    current.json     which version is served, and which were before it
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewright.bundle import Bundle
from edgewright.errors import ConfigError, IntegrityError, ModelNotFoundError
from edgewright.manifest import canonical_json, new_folder, replace_file

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
        versions = self.versions(model)
        history = self._history(model)
        if history and history[-1] not in versions:
            known = ", ".join(map(str, versions))
            raise IntegrityError(
                f"{self.path / model / CURRENT_FILE} names version {history[-1]}, "
                f"which is missing; there are: {known}"
            )
        return history[-1] if history else versions[-1]

    def bundle(self, model: str, version: int) -> Bundle:
        """The verified bundle of one version.

        Raises:
            ModelNotFoundError: there is no such model or version.
            IntegrityError: its bytes differ from its seal.
        """
        versions = self.versions(model)
        if version not in versions:
            known = ", ".join(map(str, versions))
            raise ModelNotFoundError(f"no version {version} of {model!r}; there are: {known}")
        return Bundle.open(self.path / model / str(version))

    def publish(self, bundle: Path, model: str) -> int:
        """Copy a verified bundle in as the next version and make it current.

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
            history = self._history(model) or taken[-1:]
            version = taken[-1] + 1 if taken else 1
            with new_folder(self.path / model / str(version)) as staging:
                shutil.copytree(bundle, staging, dirs_exist_ok=True)
            self._point(model, [*history, version])
        return version

    def rollback(self, model: str) -> int:
        """Make the version that was current before this one current again, and return it.

        Raises:
            ModelNotFoundError: there is no such model, or no version before the current one.
        """
        versions = self.versions(model)
        with self._locked(model):
            earlier = [each for each in self._history(model)[:-1] if each in versions]
            if not earlier:
                raise ModelNotFoundError(f"{model!r} has no earlier version to go back to")
            self._point(model, earlier)
        return earlier[-1]

    @contextmanager
    def _locked(self, model: str) -> Iterator[None]:
        """One writer of a model at a time; a lock goes with the process that holds it."""
        folder = self.path / model
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK_FILE).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _history(self, model: str) -> list[int]:
        file = self.path / model / CURRENT_FILE
        if not file.exists():
            return []
        try:
            history = json.loads(file.read_bytes())["history"]
            sound = isinstance(history, list) and all(type(each) is int for each in history)
        except (ValueError, KeyError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise IntegrityError(f"{file} was altered; remove it to serve the highest version")
        return list(history)

    def _point(self, model: str, history: list[int]) -> None:
        file = self.path / model / CURRENT_FILE
        replace_file(file, canonical_json({"current": history[-1], "history": history}))

    @staticmethod
    def _versions(model_folder: Path) -> list[int]:
        if not model_folder.is_dir():
            return []
        return sorted(
            int(child.name)
            for child in model_folder.iterdir()
            if _VERSION.fullmatch(child.name) and child.is_dir()
        )
