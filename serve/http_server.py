"""HTTP/1.1 on the server's event loop: h11 parses, asyncio moves the bytes.

A connection costs a task, never a thread, and everything that a peer can be slow at has a limit:
the head, the body, taking the answer. So a stalled client holds nothing for ever.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

import h11

from edgewright.serve.http_connection import Connection
from edgewright.serve.http_limits import BodyLimit
from edgewright.serve.http_messages import Answer, Refusal
from edgewright.serve.ports import listening, port_of

MAX_CONNECTIONS: Final = 256
HEAD_S: Final = 10.0  # from the connection, or the last answer, to the end of a head
BODY_S: Final = 30.0


class HttpServer:
    """A bound port, and whoever is connected to it. Lives on the event loop."""

    def __init__(
        self,
        host: str,
        port: int,
        answer: Answer,
        *,
        max_body_bytes: int,
        context: ssl.SSLContext | None = None,
        reserved: bool = False,
        head_s: float = HEAD_S,
        body_s: float = BODY_S,
    ) -> None:
        """Bind the port of every address of ``host``; ConfigError when it cannot be had.

        With ``context`` it speaks HTTPS. ``reserved``: another process keeps the port for this one.

        ``answer`` must not raise; it is cancelled when the client leaves.
        """
        self._answer = answer
        self._bodies = BodyLimit(max_body_bytes)
        self._context = context
        self._head_s, self._body_s = head_s, body_s
        self._connections: set[asyncio.Task[None]] = set()
        self._servers: Sequence[asyncio.Server] = ()
        self._sockets = listening(host, port, "--metrics-port", reserved=reserved)

    @property
    def port(self) -> int:
        """The port that was bound."""
        return port_of(self._sockets)

    async def start(self) -> None:
        """Begin to answer."""
        self._servers = await self._listen()

    async def renew(self, context: ssl.SSLContext) -> None:
        """Meet new connections with another certificate; the old ones go on."""
        self._context = context
        before, self._servers = self._servers, await self._listen()
        for each in before:
            each.close()

    async def _listen(self) -> list[asyncio.Server]:
        # A server closes its socket with it; the port stays bound by ours.
        return [
            await asyncio.start_server(
                self._connected,
                sock=each.dup(),
                ssl=self._context,
                ssl_handshake_timeout=None if self._context is None else self._head_s,
            )
            for each in self._sockets
        ]

    async def stop(self) -> None:
        """Close the port and every connection."""
        for server in self._servers:
            server.close()
        for each in self._sockets:
            each.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        peer = Connection(reader, writer)
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                raise Refusal(
                    HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", {"Retry-After": "1"}
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
            self._connections.discard(task)
            writer.transport.abort()

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
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "the body came too slowly") from None
        finally:
            self._bodies.free(held)
        return await peer.respond(response, head.method == b"HEAD")
