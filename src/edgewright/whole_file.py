"""A single file, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(file: Path, content: bytes) -> None:
    """Put ``content`` at ``file``, whose folder is made when missing.

    Whoever reads meanwhile, and whoever comes after a crash, finds the old file or the new one.

    Raises:
        OSError: the folder cannot be made or written; what was at ``file`` is still there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    staging = file.with_name(f".{file.name}.partial-{secrets.token_hex(4)}")
    try:
        with staging.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(file)
    finally:
        staging.unlink(missing_ok=True)
    _sync(file.parent)


def _sync(folder: Path) -> None:
    """Flush the folder too: it holds the name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
