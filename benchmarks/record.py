"""What the benchmarks share of their records: where they go, and the machine they are of."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console

_WIDTH: Final = 140  # columns, where the output is no terminal


def write(record: Mapping[str, Any], out: Path | None) -> None:
    """Leave the record where it is wanted."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n")


def wide_console(width: int = _WIDTH) -> Console:
    """A console on which tables do not break, wherever the output goes."""
    return Console(width=None if sys.stdout.isatty() else width)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder for one run, gone afterwards: a cache that it leaves is no other's."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        yield Path(place)


def load_average() -> float:
    """Processes that wanted a core, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of what is compared, and of what it stands on."""
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}


def machine(record: Mapping[str, Any]) -> str:
    """The host of a record and how busy it was, in a line."""
    host, load = record["host"], record["load_average"]
    return (
        f"{host['cpu']}, {host['instruction_set']}, {host['cores']} cores; load average "
        f"{load['start']} at the start, {load['end']} at the end"
    )
