"""The files that a run writes: all of it as JSON, or as a page."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgewright.bench.record import Record
from edgewright.errors import ConfigError
from edgewright.manifest import replace_file

_DRAWN_BY: Final = ("jinja2", "matplotlib", "numpy")


def check_files(files: Sequence[Path], *, overwrite: bool) -> None:
    """Tell before anything is measured what would keep the files from being written.

    Raises:
        ConfigError: names every file that cannot be written.
        ModuleNotFoundError: a library that draws pages is missing.
    """
    faults = [f"--output {file}: {fault}" for file in files if (fault := _fault(file, overwrite))]
    if faults:
        raise ConfigError(faults)
    if any(file.suffix == ".html" for file in files):
        for library in _DRAWN_BY:
            importlib.import_module(library)


def _fault(file: Path, overwrite: bool) -> str:
    if file.suffix not in (".html", ".json"):
        return "a name that ends in .html or .json is expected"
    if file.is_dir():
        return "is a folder"
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        return f"{file.parent} is no folder that can be written to"
    if file.exists() and not overwrite:
        return "exists already; choose another name or pass --overwrite"
    return ""


def write_file(file: Path, record: Record) -> None:
    """Write a run as the file's ending says."""
    if file.suffix == ".html":
        from edgewright.bench.page import page  # its libraries are not a client's

        replace_file(file, page(record))
    else:
        text = json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False, indent=2)
        replace_file(file, text.encode() + b"\n")
