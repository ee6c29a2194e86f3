"""One connection over HTTP/1.1, as h11 sees it."""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import Awaitable, Mapping
from http import HTTPStatus
from typing import Any, Final

import h11

from edgewright.serve.http_messages import Request, Response
from edgewright.serve.http_tls import FAREWELL_S, said_farewell
from edgewright.serve.ports import at

MAX_HEAD_BYTES: Final = 16 << 10
ANSWER_S: Final = 30.0  # for the client to take it
DOUBT_S: Final = 0.2  # between two looks at whether a client has left; most answers come sooner
_CHUNK: Final = 64 << 10
_LOOK_S: Final = 0.02  # between two looks at what TLS has not sent: nothing tells
_ORIGIN: Final = re.compile("^https?://[^/?]*", re.IGNORECASE)  # as who asks a proxy names it
_SHORT: Final = {
    "commonName": "CN", "organizationalUnitName": "OU", "organizationName": "O",
    "localityName": "L", "stateOrProvinceName": "ST", "countryName": "C",
}  # fmt: skip


class Connection:
    """Parses what comes, and sends what is answered."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        plain: asyncio.Transport,
    ) -> None:
        """``plain`` is the writer's transport or, where that is of TLS, the one beneath."""
        self._reader = reader
        self._writer = writer
        self._plain = plain
        plain.set_write_buffer_limits(high=0)  # what is drained, the system has
        self._state = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        host, port = (writer.get_extra_info("peername") or ("", 0))[:2]
        self._subject = _subject(writer.get_extra_info("peercert"))
        self._address = at(host, port)

    async def next_event(self) -> Any:
        """What comes next: a request's head, data, its end, or that the connection is closed."""
        while (event := self._state.next_event()) is h11.NEED_DATA:
            if self._state.they_are_waiting_for_100_continue:
                self._go_on()
            self._state.receive_data(await self._reader.read(_CHUNK))
        return event

    def request(self, head: h11.Request, body: bytes) -> Request:
        """What the peer asks."""
        target = _ORIGIN.sub("", head.target.decode("ascii", errors="replace"))
        headers: dict[str, str] = {}
        for name, value in head.headers:
            key, told = name.decode("ascii"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {told}" if key in headers else told
        method, path = head.method.decode("ascii"), target.partition("?")[0] or "/"
        return Request(method, path, headers, body, self._address, self._subject)

    async def while_connected(self, answer: Awaitable[Response]) -> Response:
        """The answer; it is cancelled, and the connection ended, where the client leaves."""
        task, left = asyncio.ensure_future(answer), asyncio.ensure_future(self._left())
        try:
            await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                left.result()
                raise ConnectionResetError
            return task.result()
        finally:
            task.cancel()
            left.cancel()
            await asyncio.gather(task, left, return_exceptions=True)

    async def _left(self) -> None:
        """Return, or raise OSError, once the client has left; it may send its next request before.

        The end of what it sends may be that of a client which waits for its answer, as ``nc -N``
        and some proxies do, or of one that has closed its socket. TLS tells who has closed; of TCP
        only a system that is sent something more does, by a reset.
        """
        ahead = 0  # bytes of it; what is beyond stays with the system
        while ahead < MAX_HEAD_BYTES and (data := await self._reader.read(MAX_HEAD_BYTES)):
            self._state.receive_data(data)
            ahead += len(data)
        if self._reader.at_eof():
            if self._writer.transport is not self._plain:
                return
            await asyncio.sleep(DOUBT_S)
            self._say_something()
        while not self._is_reset():
            await asyncio.sleep(DOUBT_S)

    def _say_something(self) -> None:
        """Send what a client of HTTP/1.1 must be able to read unasked (RFC 9110, 15.2)."""
        if (self._state.their_http_version or b"") >= b"1.1":
            self._go_on()

    def _go_on(self) -> None:
        go_on = h11.InformationalResponse(status_code=100, headers=[])
        self._write(self._state.send(go_on) or b"")

    def _is_reset(self) -> bool:
        """Whether the system has told that the connection is no more."""
        if self._plain.is_closing():
            return True
        looked = select.poll()
        looked.register(self._plain.get_extra_info("socket"), 0)  # 0: for HUP and ERR alone
        return bool(looked.poll(0))

    async def respond(self, response: Response, bare: bool) -> None:
        """Send all of it, without its body where ``bare``."""
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
        self._write(b"".join(parts))
        async with asyncio.timeout(ANSWER_S):
            await self._writer.drain()
            while self._unsent():
                await asyncio.sleep(_LOOK_S)
                await self._writer.drain()  # raises, where the client has left

    def _write(self, data: bytes) -> None:
        """Raises ConnectionResetError where the client has left: uvloop raises no OSError."""
        if self._writer.transport.is_closing():
            raise ConnectionResetError
        self._writer.write(data)

    def _unsent(self) -> int:
        """Bytes that the system has not taken; none of a plain connection that was drained."""
        tls = self._writer.transport
        return tls.get_write_buffer_size() + self._plain.get_write_buffer_size()

    async def goes_on(self) -> bool:
        """Whether another request may follow what was answered."""
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

    def abort(self) -> None:
        """Let the connection go, and what was not sent with it."""
        self._writer.transport.abort()

    async def _flush(self) -> None:
        """Let the client read what was sent: closing on bytes unread would take it away."""
        tls: Any = self._writer.transport  # a Transport, whether it derives from that or not
        try:
            async with asyncio.timeout(FAREWELL_S):
                if tls is not self._plain:
                    await said_farewell(tls, self._plain)
                    return
                if self._plain.is_closing():
                    return
                self._writer.write_eof()
                while await self._reader.read(_CHUNK):
                    pass
        except (OSError, TimeoutError):
            return


def _subject(certificate: Mapping[str, Any] | None) -> str:
    """The most particular first, as gRPC says it: "CN=alice,OU=field"."""
    if not certificate:
        return ""
    names = [pair for group in certificate.get("subject", ()) for pair in group]
    told = ",".join(f"{_SHORT.get(name, name)}={value}" for name, value in reversed(names))
    return told or "a certificate without a subject"
