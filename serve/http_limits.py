"""How much of requests over HTTP is held at once."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import h11

from edgewright.serve.http_connection import MAX_HEAD_BYTES
from edgewright.serve.http_messages import Refusal

BODIES_AT_ONCE: Final = 4  # of the largest size; more bytes than that are not held


class BodyLimit:
    """Counts the bytes of all bodies that are being read or answered."""

    def __init__(self, max_bytes: int) -> None:
        """``max_bytes`` of one body."""
        self._max_bytes = max_bytes
        self._held_bytes = 0

    def check_head(self, head: h11.Request) -> None:
        """Refusal where its body, or the head itself, is more than is taken."""
        if sum(len(name) + len(value) for name, value in head.headers) > MAX_HEAD_BYTES:
            # h11 counts only what is not complete yet, and much may come at once.
            raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too large")
        names = {name for name, _ in head.headers}
        if {b"content-length", b"transfer-encoding"} <= names:
            # A proxy that goes by the other one would take the body's end for a request.
            raise Refusal(HTTPStatus.BAD_REQUEST, "the body has two lengths; give one")
        for name, value in head.headers:
            # What unpacks may grow a thousandfold.
            if name == b"content-encoding" and value.strip().lower() != b"identity":
                raise Refusal(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                    "a body is taken as it is; leave Content-Encoding out",
                    {"Accept-Encoding": "identity"},
                )
            if name == b"content-length" and int(value) > self._max_bytes:
                raise self._too_large()

    def hold(self, count: int, so_far: int) -> None:
        """``count`` more bytes came of a body of which there are ``so_far`` now.

        They count until ``free``, also where this raises Refusal: one body, or all, are too large.
        """
        self._held_bytes += count
        if so_far > self._max_bytes:
            raise self._too_large()
        if self._held_bytes > BODIES_AT_ONCE * self._max_bytes:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many large requests at once; try again later",
                {"Retry-After": "1"},
                "QUEUE_FULL",
            )

    def free(self, count: int) -> None:
        """So many bytes are held no more."""
        self._held_bytes -= count

    def _too_large(self) -> Refusal:
        return Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is over {self._max_bytes} bytes; split the call, or raise "
            "--max-message-mb of the server",
        )
