"""HTTP/1.1 on the server's event loop: h11 parses, asyncio moves the bytes.

A connection costs a task, never a thread, and everything that a peer can be slow at has a limit:
the head, the body, taking the answer. So a stalled client holds nothing for ever.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import h11

from edgewright.errors import ConfigError

MAX_CONNECTIONS: Final = 256
MAX_HEAD_BYTES: Final = 16 << 10
BODIES_AT_ONCE: Final = 4  # of the largest size; more bytes than that are not held
HEAD_S: Final = 10.0  # from the connection, or the last answer, to the end of a head
BODY_S: Final = 30.0
ANSWER_S: Final = 30.0  # for the client to take it
_CHUNK: Final = 64 << 10
_SHORT: Final = {
    "commonName": "CN", "organizationalUnitName": "OU", "organizationName": "O",
    "localityName": "L", "stateOrProvinceName": "ST", "countryName": "C",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One request; header names are lower case, ``path`` has no query."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""
    peer: str = ""  # address and port of whoever asks
    subject: str = ""  # of the client's certificate, where it has shown one


@dataclass(frozen=True)
class Response:
    """What is answered."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Callable[[Request], Awaitable[Response]]


class _Refusal(Exception):  # noqa: N818 -- it is no error of ours
    """The connection ends with this answer, for the rest of the request is not read."""

    def __init__(self, status: HTTPStatus, what: str, headers: Mapping[str, str] = {}) -> None:
        super().__init__(what)
        self.response = Response(
            status, "text/plain; charset=utf-8", what.encode() + b"\n", headers
        )


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
        """Bind the port; ConfigError when it cannot be had. It answers after ``start``.

        With ``context`` it speaks HTTPS. ``reserved``: another process keeps the port for this one.

        ``answer`` must not raise; it is cancelled when the client leaves.
        """
        self._answer = answer
        self._max_body_bytes = max_body_bytes
        self._context = context
        self._head_s, self._body_s = head_s, body_s
        self._held_bytes = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, reuse_port=reserved)
        except OSError as error:
            raise ConfigError(
                f"--metrics-port {port} on {host} cannot be had ({error.strerror}); "
                "choose another, or 0 for any that is free"
            ) from error

    @property
    def port(self) -> int:
        """The port that was bound."""
        return int(self._socket.getsockname()[1])

    async def start(self) -> None:
        """Begin to answer."""
        self._server = await self._listen()

    async def renew(self, context: ssl.SSLContext) -> None:
        """Meet new connections with another certificate; the old ones go on."""
        self._context = context
        before, self._server = self._server, await self._listen()
        if before is not None:
            before.close()

    async def _listen(self) -> asyncio.Server:
        # A server closes its socket with it; the port stays bound by ours.
        return await asyncio.start_server(
            self._connected,
            sock=self._socket.dup(),
            ssl=self._context,
            ssl_handshake_timeout=None if self._context is None else self._head_s,
        )

    async def stop(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._server.close()
        self._socket.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        peer = _Peer(reader, writer)
        try:
            if len(self._connections) > MAX_CONNECTIONS:
                raise _Refusal(
                    HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", {"Retry-After": "1"}
                )
            while await self._exchange(peer):
                pass
        except _Refusal as refusal:
            await peer.refuse(refusal.response)
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            await peer.refuse(_Refusal(status, f"this is no HTTP/1.1: {error}").response)
        except (OSError, TimeoutError, asyncio.CancelledError, h11.LocalProtocolError):
            pass  # it has left, is too slow, or the server stops
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _exchange(self, peer: _Peer) -> bool:
        """One request and its answer; False where no other may follow."""
        async with asyncio.timeout(self._head_s):
            head = await peer.next_event()
        if not isinstance(head, h11.Request):
            return False
        held = 0
        try:
            body = bytearray()
            async with asyncio.timeout(self._body_s):
                self._check_head(head)
                while isinstance(event := await peer.next_event(), h11.Data):
                    self._held_bytes += len(event.data)
                    held += len(event.data)
                    body += event.data
                    self._check_held(held)
            request = _request(head, bytes(body), peer)
            response = await peer.while_connected(self._answer(request))
        except TimeoutError:
            raise _Refusal(HTTPStatus.REQUEST_TIMEOUT, "the body came too slowly") from None
        finally:
            self._held_bytes -= held
        return await peer.respond(response, head.method == b"HEAD")

    def _check_head(self, head: h11.Request) -> None:
        if sum(len(name) + len(value) for name, value in head.headers) > MAX_HEAD_BYTES:
            # h11 counts only what is not complete yet, and much may come at once.
            raise _Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too large")
        names = {name for name, _ in head.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            # A proxy that goes by the other one would take the body's end for a request.
            raise _Refusal(HTTPStatus.BAD_REQUEST, "the body has two lengths; give one")
        for name, value in head.headers:
            # What unpacks may grow a thousandfold.
            if name == b"content-encoding" and value.strip().lower() != b"identity":
                raise _Refusal(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    "a body is taken as it is; leave Content-Encoding out",
                    {"Accept-Encoding": "identity"},
                )
            if name == b"content-length" and int(value) > self._max_body_bytes:
                raise self._too_large()

    def _check_held(self, held: int) -> None:
        if held > self._max_body_bytes:
            raise self._too_large()
        if self._held_bytes > BODIES_AT_ONCE * self._max_body_bytes:
            raise _Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many large requests at once; try again later",
                {"Retry-After": "1"},
            )

    def _too_large(self) -> _Refusal:
        return _Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is over {self._max_body_bytes} bytes; split the call, or raise "
            "--max-message-mb of the server",
        )


class _Peer:
    """One connection, as h11 sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._state = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        host, port = (writer.get_extra_info("peername") or ("", 0))[:2]
        self.subject = _subject(writer.get_extra_info("peercert"))
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def next_event(self) -> Any:
        """What comes next: a request's head, data, its end, or that the connection is closed."""
        while (event := self._state.next_event()) is h11.NEED_DATA:
            if self._state.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                self._writer.write(self._state.send(go_on))
            self._state.receive_data(await self._reader.read(_CHUNK))
        return event

    async def while_connected(self, answer: Awaitable[Response]) -> Response:
        """The answer; it is cancelled, and the connection ended, where the client leaves."""
        task = asyncio.ensure_future(answer)
        heard = asyncio.ensure_future(self._reader.read(_CHUNK))
        try:
            await asyncio.wait((task, heard), return_when=asyncio.FIRST_COMPLETED)
            if heard.done():
                if not heard.result():
                    raise ConnectionResetError
                self._state.receive_data(heard.result())  # the next request, ahead of its time
            return await task
        finally:
            task.cancel()
            heard.cancel()
            await asyncio.gather(task, heard, return_exceptions=True)

    async def respond(self, response: Response, bare: bool) -> bool:
        """Send it, without its body where ``bare``; False where the connection is over then."""
        headers = {
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            **response.headers,
        }
        head = h11.Response(
            status_code=response.status,
            reason=HTTPStatus(response.status).phrase,
            headers=list(headers.items()),
        )
        body = h11.Data(data=b"" if bare else response.body)
        parts = [self._state.send(event) or b"" for event in (head, body, h11.EndOfMessage())]
        self._writer.write(b"".join(parts))
        async with asyncio.timeout(ANSWER_S):
            await self._writer.drain()
        if self._state.our_state is h11.MUST_CLOSE:
            await self._flush()
            return False
        self._state.start_next_cycle()
        return True

    async def refuse(self, response: Response) -> None:
        """Answer and close, if it can still be answered."""
        if self._state.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        try:
            closing = {**response.headers, "Connection": "close"}
            answer = Response(response.status, response.content_type, response.body, closing)
            await self.respond(answer, bare=False)
        except (OSError, TimeoutError, h11.ProtocolError):
            return
        await self._flush()

    async def _flush(self) -> None:
        """Let the client read what was sent: closing on bytes unread would take it away."""
        try:
            async with asyncio.timeout(1):
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while await self._reader.read(_CHUNK):
                    pass
        except (OSError, TimeoutError):
            return


def _request(head: h11.Request, body: bytes, peer: _Peer) -> Request:
    target = head.target.decode("ascii", errors="replace")
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
    method, path = head.method.decode("ascii"), target.partition("?")[0]
    return Request(method, path, headers, body, peer.address, peer.subject)


def _subject(certificate: Mapping[str, Any] | None) -> str:
    """The most particular first, as gRPC says it: "CN=alice,OU=field"."""
    if not certificate:
        return ""
    names = [pair for group in certificate.get("subject", ()) for pair in group]
    told = ",".join(f"{_SHORT.get(name, name)}={value}" for name, value in reversed(names))
    return told or "a certificate without a subject"
