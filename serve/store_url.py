"""Where a store of feedback lies: ``sqlite:///PATH`` or ``postgresql://...``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from edgewright.errors import BackendUnavailableError, ConfigError

SQLITE: Final = "sqlite"
POSTGRESQL: Final = "postgresql"
# A server that is away, or a network that swallows packets, must not hold feedback for minutes.
_POSTGRESQL_PATIENCE: Final = {"connect_timeout": "5", "tcp_user_timeout": "10000"}  # s, ms
SQLITE_PATIENCE_S: Final = 10.0  # for another process's transaction
_EXPECTED: Final = "sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE is expected"


@dataclass(frozen=True)
class StoreUrl:
    """A parsed URL; its text holds no password."""

    url: URL

    @classmethod
    def parse(cls, text: str) -> StoreUrl:
        """The store that ``text`` names; nothing is opened.

        Raises:
            ConfigError: not a URL of a database that we write; a password in it is not repeated.
            BackendUnavailableError: the driver for PostgreSQL is not installed.
        """
        try:
            url = make_url(text)
            kind = url.get_backend_name()
        except (ArgumentError, ValueError):
            raise ConfigError(
                f"the URL of the feedback store cannot be read; {_EXPECTED}"
            ) from None
        if url.drivername == SQLITE:
            return cls(_checked_sqlite(url))
        if url.drivername not in (POSTGRESQL, "postgresql+psycopg"):
            raise ConfigError(f"feedback store: {kind}: is not a database we write; {_EXPECTED}")
        _require_psycopg()
        return cls(url.set(drivername="postgresql+psycopg"))

    @property
    def kind(self) -> str:
        """SQLITE or POSTGRESQL."""
        return str(self.url.get_backend_name())

    @property
    def path(self) -> Path | None:
        """The file, of SQLite."""
        return Path(str(self.url.database)) if self.kind == SQLITE else None

    @property
    def connect_args(self) -> dict[str, Any]:
        """What the driver is told beside the URL; what the URL itself says goes first."""
        if self.kind == SQLITE:
            return {"timeout": SQLITE_PATIENCE_S}
        return {k: v for k, v in _POSTGRESQL_PATIENCE.items() if k not in self.url.query}

    def scrubbed(self, message: str) -> str:
        """``message`` without the password, should a driver have repeated it."""
        secrets = [self.url.password, *self.url.query.values()]
        for secret in secrets:
            if isinstance(secret, str) and secret:
                message = message.replace(secret, "***")
        return message

    def __str__(self) -> str:
        """For messages: libpq takes passwords in the query as well, so that it is left out."""
        if self.kind == SQLITE:
            return f"sqlite:///{self.url.database}"
        bare = self.url.set(drivername=POSTGRESQL, query={})
        return bare.render_as_string(hide_password=True)

    def __repr__(self) -> str:
        return f"StoreUrl({self})"


def _checked_sqlite(url: URL) -> URL:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ConfigError(
            "feedback store: sqlite: without a path nothing would be durable; "
            "sqlite:///PATH is expected (sqlite:////PATH for one from the root)"
        )
    if url.query or url.host:
        raise ConfigError(
            "feedback store: sqlite: the URL holds more than a path; sqlite:///PATH is expected, "
            "with three slashes"
        )
    return url


def _require_psycopg() -> None:
    try:
        import psycopg  # noqa: F401 -- to know now, and say so in our words
    except ImportError as error:
        raise BackendUnavailableError(
            f"a feedback store in PostgreSQL needs psycopg ({error}); "
            "pip install 'edgewright[postgresql]'"
        ) from error
