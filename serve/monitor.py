"""The HTTP port for machines that watch: /metrics, /healthz and /readyz."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from edgewright.errors import ConfigError

_TEXT = "text/plain; charset=utf-8"
_POLL_S = 0.1  # how soon the thread sees that it is to stop
_IDLE_S = 10.0  # a connection that says nothing is closed


@dataclass(frozen=True)
class Watched:
    """What the port tells of."""

    metrics: CollectorRegistry
    alive: Callable[[], bool]  # restart the process when it is not
    ready: Callable[[], bool]  # send it calls when it is


class Monitor:
    """An HTTP server in a thread of its own, so that it answers while models load."""

    def __init__(self, host: str, port: int, watched: Watched) -> None:
        """Bind the port; ConfigError when it cannot be had. It answers after ``start``."""
        try:
            kind = _Server6 if ":" in host else _Server
            self._server = kind((host, port), _handler(watched))
        except OSError as error:
            raise ConfigError(
                f"--metrics-port {port} on {host} cannot be had ({error.strerror}); "
                "choose another, or 0 for any that is free"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_S,), name="monitor", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that was bound."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True  # of sockets in TIME_WAIT; a port in use is refused all the same

    def server_bind(self) -> None:
        """Without HTTPServer's look-up of the host's name, for which a dead DNS takes seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class _Server6(_Server):
    address_family = socket.AF_INET6


def _handler(watched: Watched) -> type[BaseHTTPRequestHandler]:
    pages: dict[str, Callable[[], tuple[HTTPStatus, str, bytes]]] = {
        "/metrics": lambda: (HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(watched.metrics)),
        "/healthz": lambda: _yes_or_no(watched.alive()),
        "/readyz": lambda: _yes_or_no(watched.ready()),
    }

    class Handler(BaseHTTPRequestHandler):
        timeout = _IDLE_S
        protocol_version = "HTTP/1.1"
        server_version = "edgewright"
        sys_version = ""

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                self._answer(HTTPStatus.NOT_FOUND, _TEXT, b"there are: " + " ".join(pages).encode())
            else:
                self._answer(*page())

        do_HEAD = do_GET  # noqa: N815 -- http.server looks for this name

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
            """Probes come every few seconds: not worth a line each."""

    return Handler


def _yes_or_no(yes: bool) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.OK if yes else HTTPStatus.SERVICE_UNAVAILABLE
    return status, _TEXT, status.phrase.encode() + b"\n"
