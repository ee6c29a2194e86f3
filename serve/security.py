"""What a server was told of TLS, tokens and callers, kept up to date while it runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

from edgewright.errors import ConfigError
from edgewright.serve.callers import Callers
from edgewright.serve.config import ServeConfig
from edgewright.serve.instruments import Instruments
from edgewright.serve.reloaded import RELOAD_S, Reloaded
from edgewright.serve.tls import Tls
from edgewright.serve.tokens import Tokens, read_tokens

T = TypeVar("T")
log = logging.getLogger(__name__)


class Security:
    """The server's identity and its callers'. Lives on the event loop."""

    def __init__(self, config: ServeConfig, instruments: Instruments) -> None:
        """Read the files.

        Raises:
            ConfigError: everything that is wrong with any of them.
        """
        self._instruments = instruments
        faults: list[str] = []
        self._tls = _or_fault(lambda: _tls(config, instruments), faults)
        self._tokens = _or_fault(lambda: _tokens(config, instruments), faults)
        if faults:
            raise ConfigError(faults)
        self.callers = Callers(
            self._tokens,
            wants_certificate=self._tls is not None and self._tls.wants_clients,
            most_calls=config.max_calls_per_caller,
            named=config.max_rows_per_caller is not None,
        )
        self._credentials: list[grpc.ServerCredentials] = []
        self._watching: asyncio.Task[None] | None = None
        self._tell_expiry()
        if self._tokens is not None and self._tls is None:
            log.warning("tokens are taken, but without --tls-cert they travel in the clear")
        if config.admin_is_exposed:
            log.warning(
                "whoever reaches --admin-host %s may change what is served; give --tokens too",
                config.admin_host,
            )

    @property
    def context(self) -> ssl.SSLContext | None:
        """For connections of HTTP that begin now; None where it is in the clear."""
        return None if self._tls is None else self._tls.identity.context

    def add_port(self, rpc: Any, address: str) -> int:
        """Bind a port of a gRPC server, with TLS where there is any; its number."""
        if self._tls is None:
            return int(rpc.add_insecure_port(address))
        # gRPC's core calls back into them from threads of its own, so they outlive every handshake.
        self._credentials.append(self._tls.server_credentials())
        return int(rpc.add_secure_port(address, self._credentials[-1]))

    def watch(self) -> None:
        """From now on look at the files every few seconds."""
        if self._tls is not None or self._tokens is not None:
            self._watching = asyncio.create_task(self._watch())

    async def look(self) -> None:
        """Look at the files once, and take what has changed."""
        if self._tokens is not None:
            await asyncio.to_thread(self._tokens.renew)
        if self._tls is not None and await asyncio.to_thread(self._tls.files.renew):
            self._tell_expiry()

    async def close(self) -> None:
        """Look at the files no more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(RELOAD_S)
            try:
                await self.look()
            except Exception:  # an edge: nobody else would hear of it, and the next look may do
                log.exception("the files of TLS and tokens could not be looked at")

    def _tell_expiry(self) -> None:
        if self._tls is not None:
            expires = self._tls.identity.expires.timestamp()
            self._instruments.certificate_expires.set(expires)


def _tls(config: ServeConfig, instruments: Instruments) -> Tls | None:
    return None if config.tls is None else Tls(config.tls, instruments.reloaded)


def _tokens(config: ServeConfig, instruments: Instruments) -> Reloaded[Tokens] | None:
    path = config.tokens
    if path is None:
        return None
    return Reloaded(
        "tokens",
        {"--tokens": path},
        lambda files: read_tokens(path, files[0]),
        instruments.reloaded,
    )


def _or_fault(make: Callable[[], T | None], faults: list[str]) -> T | None:
    """What ``make`` gives; where it cannot, its faults go to ``faults``."""
    try:
        return make()
    except ConfigError as error:
        faults += error.faults
        return None
