"""HTTP on a raw socket, and what answers it."""

from __future__ import annotations

import asyncio
import json
import socket

from edgewright.serve.http_messages import Request, Response
from edgewright.serve.http_server import HttpServer


class Answers:
    """Echoes; a path of /wait waits until it is let go."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.go = asyncio.Event()
        self.waiting = 0
        self.left = 0

    async def __call__(self, request: Request) -> Response:
        self.asked.append(request)
        if request.path == "/wait":
            self.waiting += 1
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.left += 1
                raise
        told = [request.method, request.path, len(request.body)]
        return Response(200, "application/json", json.dumps(told).encode())


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def tell(server: HttpServer, data: bytes) -> bytes:
    """Everything that is answered until the server closes."""
    with connect(server) as connection:
        connection.sendall(data)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    told = b""
    try:
        while part := connection.recv(65536):
            told += part
    except ConnectionResetError:
        pass
    return told


def post(body: bytes, extra: str = "", path: str = "/x") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
