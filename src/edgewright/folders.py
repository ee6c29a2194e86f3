"""Folders that are made for what is to come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make ``folder`` and those above it; of these, what is empty at the end goes again.

    Raises:
        OSError: it cannot be made.
    """
    made = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in made:
            with suppress(OSError):  # not empty, or gone
                each.rmdir()
