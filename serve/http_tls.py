"""TLS over a connection whose plain transport stays at hand.

What TLS has passed on, and the system has not taken yet, its own transport does not count: who sent
it would believe that it had gone, and close on it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, Final

FAREWELL_S: Final = 1.0  # for the peer to leave, once it is told that nothing more comes


async def secured(
    taken: socket.socket,
    protocol: asyncio.StreamReaderProtocol,
    context: ssl.SSLContext,
    handshake_s: float,
) -> tuple[asyncio.Transport, asyncio.Transport]:
    """The transport of ``protocol``, by TLS, and the plain one beneath it.

    Raises:
        OSError: the peer has left, speaks no TLS, or has not in ``handshake_s``.
    """
    loop, early = asyncio.get_running_loop(), _Early()
    plain, _ = await loop.connect_accepted_socket(lambda: early, taken)
    begun = asyncio.ensure_future(
        loop.start_tls(
            plain,
            protocol,
            context,
            server_side=True,
            ssl_handshake_timeout=handshake_s,
            ssl_shutdown_timeout=FAREWELL_S,
        )
    )
    try:
        await asyncio.sleep(0)  # now TLS has the connection, and reads it from the next turn on
        loop.call_soon(_hand_on, bytes(early.came), plain)
        transport = await begun
    except BaseException:
        begun.cancel()
        plain.abort()
        raise
    if transport is None:
        raise ConnectionResetError
    protocol.connection_made(transport)
    return transport, plain


async def said_farewell(tls: asyncio.Transport, plain: asyncio.Transport) -> None:
    """Tell the peer that nothing more comes, and drop what it still sends until it leaves."""
    rest = _Dropped()
    tls.resume_reading()  # what has come is read first: asyncio's TLS breaks off on it
    tls.close()
    plain.set_protocol(rest)
    await rest.over


class _Dropped(asyncio.Protocol):
    """Whatever comes; ``over`` once the connection is."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


class _Early(asyncio.Protocol):
    """Keeps what comes before TLS has begun: clients speak first, and at once."""

    def __init__(self) -> None:
        self.came = bytearray()

    def data_received(self, data: bytes) -> None:
        self.came += data


def _hand_on(came: bytes, plain: asyncio.Transport) -> None:
    if came and not plain.is_closing():
        tls: Any = plain.get_protocol()  # a BufferedProtocol, whether it derives from that or not
        tls.get_buffer(len(came))[: len(came)] = came
        tls.buffer_updated(len(came))
