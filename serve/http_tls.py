"""TLS over a connection whose plain transport stays at hand.

What TLS has passed on, and the system has not taken yet, its own transport does not count: who sent
it would believe that it had gone, and close on it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any


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
            plain, protocol, context, server_side=True, ssl_handshake_timeout=handshake_s
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
