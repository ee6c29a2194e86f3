"""``edgewright token``: secrets for callers, hashes for the server."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import click

from edgewright.errors import ConfigError
from edgewright.options import Command, Group, output_options
from edgewright.output import Output
from edgewright.serve.tokens import Right, new_token, read_tokens

_EXAMPLES = (
    "edgewright token new --name news-site --add-to tokens.txt -o news-site.token",
    "edgewright token new --name prometheus --rights metrics --add-to tokens.txt --json",
)


@click.group(cls=Group, examples=_EXAMPLES)
def token() -> None:
    """Make the tokens that `edgewright serve --tokens FILE` asks callers for."""


@token.command("new", cls=Command, examples=_EXAMPLES)
@click.option("--name", required=True, help="Whose it is: for messages, limits and the file.")
@click.option(
    "--rights",
    default=f"{Right.CALL},{Right.FEEDBACK}",
    help=f"What it is good for, with commas between: {', '.join(Right)}.",
)
@click.option(
    "--add-to",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Server's file of tokens that the line is added to; made where there is none.",
)
@click.option(
    "-o",
    "--output-file",
    "kept_in",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="New file for the token, which only its owner may read; it is not printed then.",
)
@output_options
def new(name: str, rights: str, add_to: Path | None, kept_in: Path | None, output: Output) -> None:
    """Print a new random token, which is nowhere kept: once it is lost, make another.

    The server's file has a line for each, with its SHA-256. Without --add-to that line is printed
    too. To withdraw a token, delete its line; the server looks every few seconds.
    """
    known = {str(each) for each in Right}
    unknown = [each for each in rights.split(",") if each not in known]
    if unknown:
        raise ConfigError(
            f"--rights: {', '.join(map(repr, unknown))} is none; there are {', '.join(Right)}"
        )
    secret, made = new_token(name, [Right(each) for each in rights.split(",")])
    if kept_in is not None:
        _keep(kept_in, secret)
    if add_to is not None:
        try:
            _add(add_to, made.line())
        except (ConfigError, OSError):
            if kept_in is not None:
                kept_in.unlink()
            raise
        output.note(f"{name} stands in {add_to}")
    if kept_in is None:
        output.note("this is the only time that the token is shown")
    shown = {"token": secret} if kept_in is None else {"file": str(kept_in)}
    told = [*shown.values(), *([made.line()] if add_to is None else [])]
    output.result({"name": name, **shown, "line": made.line()}, told)


def _keep(path: Path, secret: str) -> None:
    """``secret`` in a new file that nobody but its owner may read."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError(f"-o {path} exists; give a new file, or delete it first") from error
    except OSError as error:
        raise ConfigError(f"-o {path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(file, "w") as opened:
            opened.write(f"{secret}\n")
    except OSError as error:  # a full disk
        path.unlink()
        error.filename = path
        raise


def _add(path: Path, line: str) -> None:
    """One write at the end, so that a server that reads meanwhile sees all of the line or none."""
    before = path.read_bytes() if path.exists() else b""
    if before.strip():
        _check_new(path, before, line)
    gap = b"" if before.endswith(b"\n") or not before else b"\n"
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"--add-to {path} cannot be written: {error.strerror}") from error
    try:
        _write_whole(file, gap + line.encode() + b"\n")
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(file)


def _write_whole(file: int, data: bytes) -> None:
    """OSError where there is no room for all of it; none of it is left then."""
    written = os.write(file, data)
    if written < len(data):
        os.ftruncate(file, os.fstat(file).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _check_new(path: Path, before: bytes, line: str) -> None:
    """ConfigError where ``path`` is no file of tokens, or has the name already."""
    try:
        names = read_tokens(path, before).names
    except ConfigError as error:
        raise ConfigError([f"--add-to {path} is no file of tokens", *error.faults]) from error
    name = line.partition(" ")[0]
    if name in names:
        raise ConfigError(
            f"--add-to {path} has a token of {name}; give another name, or delete its line first"
        )
