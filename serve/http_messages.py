"""What is asked and answered over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus


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


class Refusal(Exception):  # noqa: N818 -- it is no error of ours
    """The connection ends with this answer, for the rest of the request is not read."""

    def __init__(self, status: HTTPStatus, what: str, headers: Mapping[str, str] = {}) -> None:
        super().__init__(what)
        self.response = Response(
            status, "text/plain; charset=utf-8", what.encode() + b"\n", headers
        )
