"""The repository that serve answers from: ``REPOSITORY/<model>/<version>/`` holds bundles.

repository/
  news/
    1/  2/  3/       bundles, never changed once published
    current.json     which version is served, and which were before it
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewright.bundle import Bundle
from edgewright.errors import ConfigError, IntegrityError, ModelNotFoundError
from edgewright.manifest import canonical_json, new_folder

CURRENT_FILE: Final = "current.json"
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
        return sorted(child.name for child in self.path.iterdir() if self._versions(child))

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
            raise IntegrityError(
                f"{self.path / model / CURRENT_FILE} names version {history[-1]}, which is missing; there "
                f"are: {', '.join(map(str, versions))}"
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
        taken = self._versions(self.path / model)
        version = taken[-1] + 1 if taken else 1
        with new_folder(self.path / model / str(version)) as staging:
            shutil.copytree(bundle, staging, dirs_exist_ok=True)
        history = self._history(model) or taken[-1:]
        self._point(model, [*history, version])
        return version

    def rollback(self, model: str) -> int:
        """Make the version that was current before this one current again, and return it.

        Raises:
            ModelNotFoundError: there is no such model, or no version before the current one.
        """
        self.versions(model)
        history = self._history(model)
        if len(history) < 2:
            raise ModelNotFoundError(f"{model!r} has no earlier version to go back to")
        self._point(model, history[:-1])
        return history[-2]

    def _history(self, model: str) -> list[int]:
        file = self.path / model / CURRENT_FILE
        if not file.exists():
            return []
        try:
            history = [int(version) for version in json.loads(file.read_bytes())["history"]]
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{file} was altered; remove it to serve the highest version"
            ) from error
        return history

    def _point(self, model: str, history: list[int]) -> None:
        file = self.path / model / CURRENT_FILE
        staging = file.with_name(f".{CURRENT_FILE}.partial-{os.getpid()}")
        with staging.open("wb") as stream:
            stream.write(canonical_json({"current": history[-1], "history": history}))
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(file)

    @staticmethod
    def _versions(model_folder: Path) -> list[int]:
        if not model_folder.is_dir():
            return []
        return sorted(
            int(child.name)
            for child in model_folder.iterdir()
            if child.is_dir() and child.name.isascii() and child.name.isdigit()
        )
