"""What a command says: data to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@dataclass(frozen=True)
class Output:
    """One command's voice. ``json_only`` prints a single object and no progress."""

    json_only: bool = False
    quiet: bool = False
    mute: bool = False  # says nothing: another process of the same run speaks

    @property
    def silent(self) -> bool:
        """Whether notes and progress are left out."""
        return self.json_only or self.quiet or self.mute

    @property
    def draws_bars(self) -> bool:
        """Whether ``progress`` is to be seen: on a terminal, and not in a log file."""
        return not self.silent and sys.stderr.isatty()

    def note(self, message: str) -> None:
        """A line for the person watching, on stderr."""
        if not self.silent:
            click.echo(message, err=True)

    def warn(self, message: str) -> None:
        """A line that matters even under --quiet and --json, on stderr."""
        if not self.mute:
            click.echo(f"warning: {message}", err=True)

    def result(self, value: Mapping[str, Any], lines: Iterable[str]) -> None:
        """The command's result: the object under --json, else the lines; both on stdout."""
        if self.mute:
            return
        if self.json_only:
            click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))
        else:
            for line in lines:
                click.echo(line)

    def progress(self) -> Progress:
        """A bar with time elapsed and remaining, on stderr; hidden where none is wanted."""
        hidden = not self.draws_bars
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=Console(stderr=True, quiet=hidden),  # rich 14.0 ends a hidden one with a line
            disable=hidden,
        )
