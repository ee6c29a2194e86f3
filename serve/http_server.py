"""HTTP/1.1 on the server's event loop: h11 parses, asyncio moves the bytes.

A connection costs a task, never a thread, and everything that a peer can be slow at has a limit:
the head, the body, taking the answer. So a stalled client holds nothing for ever.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

import h11

from edgewright.serve.http_connection import Connection
from edgewright.serve.http_limits import BodyLimit
from edgewright.serve.http_messages import Answer, Refusal
from edgewright.serve.http_tls import secured
from edgewright.serve.ports import listening, port_of
from edgewright.serve.transfers import Transfers

MAX_CONNECTIONS: Final = 256
HEAD_S: Final = 10.0  # from the connection, or the last answer, to the end of a head
BODY_S: Final = 30.0
_AGAIN_S: Final = 1.0  # after the system had no room for a connection

log = logging.getLogger(__name__)


class HttpServer:
    """A bound port, and whoever is connected to it. Lives on the event loop."""

    def __init__(
        self,
        host: str,
        port: int,
        answer: Answer,
        *,
        max_body_bytes: int,
        context: Callable[[], ssl.SSLContext | None] = lambda: None,
        transfers: Transfers | None = None,
        reserved: bool = False,
        head_s: float = HEAD_S,
        body_s: float = BODY_S,
    ) -> None:
        """Bind the port of every address of ``host``; ConfigError when it cannot be had.

        ``answer`` must not raise; it is cancelled when the client leaves. ``context``, asked for
        each connection anew, makes it HTTPS. ``transfers`` hears of the answers that are sent.
        ``reserved``: another process keeps the port for this one.
        """
        self._answer = answer
        self._bodies = BodyLimit(max_body_bytes)
        self._context = context
        self._transfers = Transfers() if transfers is None else transfers
        self._head_s, self._body_s = head_s, body_s
        self._connections: set[asyncio.Task[None]] = set()
        self._accepting: Sequence[asyncio.Task[None]] = ()
        self._sockets = listening(host, port, "--metrics-port", reserved=reserved)

    @property
    def port(self) -> int:
        """The port that was bound."""
        return port_of(self._sockets)

    async def start(self) -> None:
        """Begin to answer."""
        self._accepting = [asyncio.create_task(self._accept(each)) for each in self._sockets]

    async def stop(self) -> None:
        """Close the port and every connection."""
        for task in (*self._accepting, *self._connections):
            task.cancel()
        await asyncio.gather(*self._accepting, *self._connections, return_exceptions=True)
        for each in self._sockets:
            each.close()

    async def _accept(self, listener: socket.socket) -> None:
        """Take in connections, each as a task that counts from before its handshake."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                taken, _ = await loop.sock_accept(listener)
            except ConnectionAbortedError:  # it has left again
                continue
            except OSError as error:  # no file is free, as a rule
                log.warning("no connection to --metrics-port can be taken: %s", error)
                await asyncio.sleep(_AGAIN_S)
                continue
            task = asyncio.create_task(self._connected(taken))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
            await asyncio.sleep(0)  # others have their turn, however many wait to be taken in

    async def _connected(self, taken: socket.socket) -> None:
        context, crowded = self._context(), len(self._connections) > MAX_CONNECTIONS
        if crowded and context is not None:  # a handshake would cost more than there is to say
            taken.close()
            return
        try:
            peer = await self._opened(taken, context)
        except (OSError, asyncio.CancelledError):  # no TLS, or the server stops
            return
        await self._talk(peer, crowded)

    async def _opened(self, taken: socket.socket, context: ssl.SSLContext | None) -> Connection:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        if context is None:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, taken)
            plain = transport
        else:
            transport, plain = await secured(taken, protocol, context, self._head_s)
        if plain.is_closing():  # it has left as soon as it was taken in
            transport.abort()
            raise ConnectionResetError
        return Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop), plain)

    async def _talk(self, peer: Connection, crowded: bool) -> None:
        try:
            if crowded:
                raise Refusal(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    "too many connections; try again later",
                    {"Retry-After": "1"},
                    "QUEUE_FULL",
                )
            while await self._exchange(peer):
                pass
        except Refusal as refusal:
            await peer.refuse(refusal.response)
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            await peer.refuse(Refusal(status, f"this is no HTTP/1.1: {error}").response)
        except (OSError, TimeoutError, asyncio.CancelledError, h11.LocalProtocolError):
            pass  # it has left, is too slow, or the server stops
        finally:
            peer.abort()

    async def _exchange(self, peer: Connection) -> bool:
        """One request and its answer; False where no other may follow."""
        async with asyncio.timeout(self._head_s):
            head = await peer.next_event()
        if not isinstance(head, h11.Request):
            return False
        held = 0
        try:
            body = bytearray()
            async with asyncio.timeout(self._body_s):
                self._bodies.check_head(head)
                while isinstance(event := await peer.next_event(), h11.Data):
                    held += len(event.data)
                    body += event.data
                    self._bodies.hold(len(event.data), held)
            request = peer.request(head, bytes(body))
            del body  # nobody needs it twice while it is answered
            response = await peer.while_connected(self._answer(request))
        except TimeoutError:
            raise Refusal(
                HTTPStatus.REQUEST_TIMEOUT, "the body came too slowly", reason="DEADLINE"
            ) from None
        finally:
            self._bodies.free(held)
        with self._transfers.here():
            await peer.respond(response, head.method == b"HEAD")
        return await peer.goes_on()
