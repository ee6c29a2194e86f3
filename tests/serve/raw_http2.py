"""A gRPC client of bytes alone, which does what no library would: takes no answer, or vanishes."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from google.protobuf.message import Message

DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
_INITIAL_WINDOW = 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class DeafClient:
    """Sends calls over one connection and gives the server no room to answer them in.

    It answers pings where it is told to. What it sends has to fit into the windows of HTTP/2 (65,535 bytes).
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(60)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(("127.0.0.1", port))
        no_room = frame(SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW, 0))
        self.socket.sendall(PREFACE + no_room + frame(SETTINGS, ACK, 0, b""))
        self._stream = -1

    def call(self, method: str, messages: Sequence[Message], *, last: bool = True) -> None:
        """One call with these messages; ``last`` is whether its caller has said all."""
        self._stream += 2
        frames = [frame(HEADERS, END_HEADERS, self._stream, head_of(method))]
        for place, message in enumerate(messages, 1):
            data = message.SerializeToString()
            ends = END_STREAM if last and place == len(messages) else 0
            packed = b"\0" + struct.pack(">I", len(data)) + data
            frames.append(frame(DATA, ends, self._stream, packed))
        self.socket.sendall(b"".join(frames))

    def answer_ping(self) -> None:
        """Take frames up to a ping, and answer that one."""
        while (came := self._next_frame()) is not None:
            kind, payload = came
            if kind == PING:
                self.socket.sendall(frame(PING, ACK, 0, payload))
                return

    def wait_until_closed(self) -> None:
        """Take what comes until the server closes; TimeoutError where it does not."""
        try:
            while self._next_frame() is not None:
                pass
        except ConnectionError:
            pass

    def _next_frame(self) -> tuple[int, bytes] | None:
        head = self._exactly(9)
        return None if head is None else (head[3], self._exactly(int.from_bytes(head[:3])) or b"")

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                return None
            data += part
        return data

    def close(self) -> None:
        self.socket.close()


def head_of(method: str | bytes) -> bytes:
    """The header block of a call."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": method, ":authority": "x",
        "te": "trailers", "content-type": "application/grpc",
    }  # fmt: skip
    return b"".join(b"\0" + _literal(name) + _literal(value) for name, value in fields.items())


def _literal(text: str | bytes) -> bytes:
    """A length and the letters, as HPACK has what it does not index (RFC 7541, 6.2.2)."""
    letters = text.encode() if isinstance(text, str) else text
    return bytes([len(letters)]) + letters


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """As RFC 9113 lays it out, section 4.1."""
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )
