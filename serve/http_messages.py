"""What is asked and answered over HTTP."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

JSON: Final = "application/json"


@dataclass(frozen=True)
class Request:
    """One request; header names are lower case, ``path`` has no query.

    What came in several lines of one name is one value, with commas between.
    """

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


def error_answer(
    status: HTTPStatus,
    message: str,
    headers: Mapping[str, str] = {},
    reason: str = "INPUT_INVALID",
) -> Response:
    """Why there is no other; ``reason`` is one of ``rpc_errors.REASONS``."""
    told = {"error": message, "reason": reason}
    return Response(status, JSON, json.dumps(told).encode(), headers)


Answer = Callable[[Request], Awaitable[Response]]


class Refusal(Exception):  # noqa: N818 -- it is no error of ours
    """The connection ends with this answer, for the rest of the request is not read."""

    def __init__(
        self,
        status: HTTPStatus,
        what: str,
        headers: Mapping[str, str] = {},
        reason: str = "INPUT_INVALID",
    ) -> None:
        """As ``error_answer``."""
        super().__init__(what)
        self.response = error_answer(status, what, headers, reason)
