"""What a host found out: engines built here, and what was proven or measured of bundles here.

A bundle is never written to: it may lie on a read-only disk, and its seal covers every byte. What a
host adds lies in a folder of its own, which can be deleted at any time and be made again.

    STATE_DIR/engines/                        TensorRT engines and timing caches, by their keys
    STATE_DIR/bundles/<manifest SHA-256>/     one JSON file for each kind of result on a bundle:
                                              what was measured here (``proof.host_record``)
    STATE_DIR/bundles/<manifest SHA-256>.lock held while a bundle is measured
    STATE_DIR/loading/                        what servers load as they start

STATE_DIR is ``--state-dir``, else ``edgewright`` in ``$XDG_STATE_HOME`` or ``~/.local/state``.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgewright.errors import ConfigError, IntegrityError
from edgewright.manifest import canonical_json, replace_file, sha256_bytes


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that is used unless another is asked for; it need not exist.

    Raises:
        ConfigError: this user has no home folder.
    """
    try:
        home = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home folder to keep results in; give a folder with --state-dir"
        ) from error
    return Path(home) / "edgewright"


@dataclass(frozen=True)
class StateDir:
    """One host's results; nothing is created before something is written."""

    path: Path

    @classmethod
    def at(cls, path: Path | None) -> StateDir:
        """The folder of this path; None means the default one, and raises as that does."""
        return cls(path or default_state_dir())

    @property
    def engines(self) -> Path:
        """Where engines lie, which bundles may share."""
        return self.path / "engines"

    def of(self, manifest_sha256: str) -> Path:
        """The folder of one bundle, which published copies of it share."""
        return self.path / "bundles" / manifest_sha256

    @contextmanager
    def locked(self, manifest_sha256: str, waits: Callable[[], None]) -> Iterator[None]:
        """Only one thread of one process at a time works on a bundle; ``waits`` tells of others.

        The bundle's own folder is not created: where it is, there are results.

        Raises:
            OSError: the folder cannot be written.
        """
        folder = self.of(manifest_sha256)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{manifest_sha256}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def read(self, manifest_sha256: str, name: str) -> dict[str, Any] | None:
        """What ``write`` kept of a bundle under ``name``; None where there is nothing.

        Raises:
            IntegrityError: the file was altered or cut off.
        """
        file = self._file(manifest_sha256, name)
        try:
            record = json.loads(file.read_bytes())
            result, checksum = record["result"], record["checksum"]
            if checksum == _checksum(result):
                return dict(result)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            pass
        raise IntegrityError(f"{file} was altered; remove it, and it will be made again")

    def write(self, manifest_sha256: str, name: str, result: Mapping[str, Any]) -> Path:
        """Keep a result on the bundle with this manifest, in place of an earlier one.

        Args:
            manifest_sha256: ``bundle.artifact.manifest_sha256``.
            name: the kind of result: "engines"; a slash makes it one of a folder of its own.
            result: must be JSON.

        Returns:
            The file that was written.

        Raises:
            OSError: the folder cannot be written.
        """
        file = self._file(manifest_sha256, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, canonical_json({"result": result, "checksum": _checksum(result)}))
        return file

    def _file(self, manifest_sha256: str, name: str) -> Path:
        return self.of(manifest_sha256) / f"{name}.json"


def _checksum(result: object) -> str:
    return sha256_bytes(canonical_json(result))
