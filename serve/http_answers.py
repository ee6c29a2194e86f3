"""Answers over HTTP, and errors with the statuses that fit their gRPC codes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import grpc
from google.rpc.status_pb2 import Status

from edgewright.errors import OverloadedError, UnauthenticatedError
from edgewright.rpc_errors import reason_of
from edgewright.serve.call_observer import CODES
from edgewright.serve.http_messages import JSON, Response, error_answer

_TEXT: Final = "text/plain; charset=utf-8"
_STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}


def json_answer(told: Mapping[str, Any]) -> Response:
    """What was asked for."""
    return Response(HTTPStatus.OK, JSON, json.dumps(told).encode())


def failed_answer(error: Exception, told: Status) -> Response:
    """The twin of the status that gRPC's callers get for ``error``."""
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    status = _STATUSES.get(CODES[told.code], HTTPStatus.INTERNAL_SERVER_ERROR)
    return error_answer(status, told.message, headers, reason_of(error))


def yes_or_no(yes: bool) -> Response:
    """For probes."""
    status = HTTPStatus.OK if yes else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(status, _TEXT, status.phrase.encode() + b"\n")
