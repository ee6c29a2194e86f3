"""The image files of a store on their way into a folder, each once and named by its SHA-256."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, select

from edgewright.manifest import sha256_bytes
from edgewright.preprocess.decode import suffix
from edgewright.serve.feedback_schema import images

FOLDER: Final = "images"


class ImageExport:
    """Writes images as they are asked for; one at a time is in memory."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        """``folder`` is where the table lies that names the files."""
        self._connection = connection
        self._folder = folder
        self._names: dict[str, str | None] = {}  # by SHA-256
        (folder / FOLDER).mkdir()

    @property
    def count(self) -> int:
        """Files written."""
        return sum(name is not None for name in self._names.values())

    def name(self, sha256: str) -> str | None:
        """Path of an image's file within the folder; None where it is gone, or damaged."""
        if sha256 not in self._names:
            self._names[sha256] = self._write(sha256)
        return self._names[sha256]

    def _write(self, sha256: str) -> str | None:
        query = select(images.c.content).where(images.c.sha256 == sha256)
        content = self._connection.execute(query).scalar()
        if content is None or sha256_bytes(content) != sha256:
            return None
        ending = suffix(content)
        if ending is None:
            return None
        name = f"{FOLDER}/{sha256}{ending}"
        (self._folder / name).write_bytes(content)
        return name
