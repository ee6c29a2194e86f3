"""Options of every command that calls a server: TLS and a token."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import click

from edgewright.errors import ConfigError

if TYPE_CHECKING:  # gRPC is imported when there is something to send
    from edgewright.client import Client
    from edgewright.connection import Connection, Tls

F = TypeVar("F", bound=Callable[..., Any])
TOKEN_VARIABLE: Final = "EDGEWRIGHT_TOKEN"


@dataclass(frozen=True)
class ConnectionOptions:
    """What a user gave to be let in with."""

    tls: bool
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    token_file: Path | None
    token_in_clear: bool

    def client(self, target: str, timeout_s: float) -> Client:
        """A client of ``target``.

        Raises:
            ConfigError: everything that cannot work.
        """
        from edgewright.client import Client

        return Client(
            target,
            timeout_s=timeout_s,
            tls=self._tls(),
            token=self._token(),
            token_in_clear=self.token_in_clear,
        )

    def connection(self, target: str, timeout_s: float) -> Connection:
        """What calls to ``target`` that are never tried again go over.

        Raises:
            ConfigError: everything that cannot work.
        """
        from edgewright.connection import MAX_MESSAGE_BYTES, Connection

        return Connection(
            target,
            timeout_s,
            retries=0,
            tls=self._tls(),
            max_message_bytes=MAX_MESSAGE_BYTES,
            clock=time.monotonic,
            token=self._token(),
            token_in_clear=self.token_in_clear,
        )

    def _tls(self) -> Tls | None:
        from edgewright.connection import Tls

        wanted = self.tls or self.tls_ca or self.tls_cert or self.tls_key
        return Tls(self.tls_ca, self.tls_cert, self.tls_key) if wanted else None

    def _token(self) -> str | None:
        if self.token_file is None:
            # No option: what is typed stands in the list of processes.
            return os.environ.get(TOKEN_VARIABLE) or None
        try:
            words = self.token_file.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {self.token_file} cannot be read: {error}") from error
        if len(words) != 1:
            raise ConfigError(
                f"--token-file {self.token_file} is to hold a token and nothing else, as "
                "`edgewright token new` prints it"
            )
        return words[0]


def connection_options(command: F) -> F:
    """--tls and its like; the command receives ``connection: ConnectionOptions``."""

    @functools.wraps(command)
    def connected(**given: Any) -> Any:
        taken = {each.name: given.pop(each.name) for each in fields(ConnectionOptions)}
        return command(connection=ConnectionOptions(**taken), **given)

    for option in reversed(_OPTIONS):
        connected = option(connected)
    return cast("F", connected)


def _file(name: str, twin: str, help_text: str) -> Callable[[Any], Any]:
    return click.option(
        name,
        metavar="FILE",
        envvar=twin,
        show_envvar=True,
        type=click.Path(path_type=Path),
        help=help_text,
    )


_OPTIONS: Final = (
    click.option("--tls", is_flag=True, help="Encrypt; the next three do so by themselves."),
    _file("--tls-ca", "EDGEWRIGHT_TLS_CA", "PEM roots to trust, in place of those of gRPC."),
    _file("--tls-cert", "EDGEWRIGHT_TLS_CLIENT_CERT", "PEM certificate of this client."),
    _file("--tls-key", "EDGEWRIGHT_TLS_CLIENT_KEY", "PEM key of it."),
    _file(
        "--token-file",
        "EDGEWRIGHT_TOKEN_FILE",
        f"File that holds the token.  [default: the variable {TOKEN_VARIABLE}]",
    ),
    click.option(
        "--token-in-clear",
        is_flag=True,
        help="Send the token to another machine without TLS, where others can read it.",
    ),
)
