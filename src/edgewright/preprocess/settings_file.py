"""preprocess.json: a JSON object with the kind of preprocessing and its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from edgewright.errors import ArtifactNotFoundError, IntegrityError
from edgewright.kinds import Kind

SETTINGS_FILE: Final = "preprocess.json"
FORMAT_VERSION: Final = 1


def read_record(path: Path) -> dict[str, Any]:
    """The object in the file, whatever its kind.

    Raises ArtifactNotFoundError when it cannot be read, IntegrityError when it holds no object.
    """
    try:
        record = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise IntegrityError(f"{path} holds a {type(record).__name__}; expected an object")
    return record


def read_settings(path: Path, kind: Kind, names: set[str]) -> dict[str, Any]:
    """The settings in the file, which are those of ``names``, as JSON holds them.

    Raises ArtifactNotFoundError when it is missing or of another kind, IntegrityError when it is
    of another version or lacks settings.
    """
    record = read_record(path)
    version = record.pop("format_version", None)
    if (found := record.pop("kind", None)) != kind.name:
        raise ArtifactNotFoundError(
            f"{path} is of kind {found!r}; expected {kind.name} preprocessing"
        )
    if version != FORMAT_VERSION:
        message = f"{path} has format_version {version!r}; this edgewright reads {FORMAT_VERSION}"
        raise IntegrityError(f"{message}: upgrade it, or make the artifact anew")
    if record.keys() != names:
        missing = ", ".join(sorted(names - record.keys())) or "none"
        unknown = ", ".join(sorted(record.keys() - names)) or "none"
        raise IntegrityError(f"{path}: missing entries {missing}; unknown entries {unknown}")
    return record


def write_settings(path: Path, kind: Kind, settings: dict[str, Any]) -> None:
    """Write what ``read_settings`` reads, making the folder where it is missing."""
    record = {"kind": kind.name, "format_version": FORMAT_VERSION, **settings}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((json.dumps(record, indent=2, sort_keys=True) + "\n").encode())


def read_text(path: Path) -> str:
    """The file's UTF-8 text.

    Raises ArtifactNotFoundError when it cannot be read, IntegrityError when it is not UTF-8.
    """
    try:
        return path.read_bytes().decode()
    except OSError as error:
        message = f"cannot read {path} ({error.strerror}); it is part of a checkpoint or bundle"
        raise ArtifactNotFoundError(message) from error
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} is not UTF-8 at byte {error.start}") from error
