"""Errors on the wire: our exceptions to ``google.rpc.Status`` and, in the client, back.

Every status carries ``google.rpc.ErrorInfo`` with the domain "edgewright" and one of the reasons of
``_TABLE``; a bad input also carries ``BadRequest``, an overload ``RetryInfo``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from edgewright.errors import (
    ArtifactError,
    BackendUnavailableError,
    CallerLimitError,
    DeadlineError,
    EdgewrightError,
    FeedbackStoreError,
    GpuLostError,
    InputError,
    IntegrityError,
    ModelNotFoundError,
    NotReadyError,
    OverloadedError,
    PermissionDeniedError,
    ServiceError,
    UnauthenticatedError,
)

DOMAIN: Final = "edgewright"
STATUS_METADATA_KEY: Final = "grpc-status-details-bin"
# A status travels in HTTP/2 headers, of which peers take 8 KiB: the message goes once
# percent-encoded (up to 3 bytes each) and twice in base64.
MAX_MESSAGE_BYTES: Final = 1000
_UNFORESEEN: Final = "internal error; the server's log has the details"
_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class _Row(NamedTuple):
    error: type[EdgewrightError]
    code: grpc.StatusCode
    reason: str


# The first row whose class fits speaks. What is not here has no business on the wire: INTERNAL.
_TABLE: Final = (
    _Row(InputError, grpc.StatusCode.INVALID_ARGUMENT, "INPUT_INVALID"),
    _Row(ArtifactError, grpc.StatusCode.FAILED_PRECONDITION, "BUNDLE_CORRUPT"),
    _Row(ModelNotFoundError, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    _Row(BackendUnavailableError, grpc.StatusCode.FAILED_PRECONDITION, "BACKEND_MISSING"),
    _Row(GpuLostError, grpc.StatusCode.UNAVAILABLE, "GPU_LOST"),
    _Row(NotReadyError, grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY"),
    _Row(CallerLimitError, grpc.StatusCode.RESOURCE_EXHAUSTED, "CALLER_LIMIT"),
    _Row(OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    _Row(FeedbackStoreError, grpc.StatusCode.UNAVAILABLE, "FEEDBACK_NOT_DURABLE"),
    _Row(DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE"),
    _Row(UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    _Row(PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
)
_INTERNAL: Final = _Row(EdgewrightError, grpc.StatusCode.INTERNAL, "INTERNAL")
REASONS: Final = tuple(row.reason for row in (*_TABLE, _INTERNAL))
# What a peer that gives no reason of ours (gRPC itself, a proxy) can mean.
_BY_CODE: Final[dict[grpc.StatusCode, type[EdgewrightError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InputError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.UNAVAILABLE: NotReadyError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.INTERNAL: EdgewrightError,
    grpc.StatusCode.UNKNOWN: EdgewrightError,
}


class RpcFailure(Protocol):
    """What a failed call tells: ``grpc.Call`` and ``grpc.aio.AioRpcError`` both do."""

    def code(self) -> grpc.StatusCode:
        """The status code."""
        ...

    def details(self) -> str | None:
        """The message."""
        ...

    def trailing_metadata(self) -> Iterable[tuple[str, Any]] | None:
        """The trailers, which hold the rich status."""
        ...


def to_status(error: BaseException) -> Status:
    """The status that tells ``error`` to a caller; an unforeseen one is told in general words."""
    if type(error) is OverloadedError:
        # Under overload nearly all are told the same, and what telling costs, answering lacks.
        status = Status()
        status.CopyFrom(_overloaded(str(error), error.retry_after_s))
        return status
    return _new_status(error)


@lru_cache(maxsize=64)
def _overloaded(message: str, retry_after_s: float) -> Status:
    return _new_status(OverloadedError(message, retry_after_s=retry_after_s))


def _new_status(error: BaseException) -> Status:
    row = next((row for row in _TABLE if isinstance(error, row.error)), _INTERNAL)
    message = _UNFORESEEN if row is _INTERNAL else _shortened(str(error))
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if _is_disk_full(error) else row.code
    status = Status(code=code.value[0], message=message)
    _attach(status, ErrorInfo(reason=row.reason, domain=DOMAIN))
    if isinstance(error, InputError):
        violation = BadRequest.FieldViolation(field=_shortened(error.field), description=message)
        _attach(status, BadRequest(field_violations=[violation]))
    if isinstance(error, OverloadedError):
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        _attach(status, RetryInfo(retry_delay=delay))
    return status


def from_rpc_error(failure: RpcFailure) -> EdgewrightError:
    """The exception that a failed call stands for, by its reason or, without one, by its code."""
    code = failure.code()
    status = _rich_status(failure.trailing_metadata())
    message = failure.details() or f"the server answered {code.name}"
    info = _detail(status, ErrorInfo)
    if info is not None and info.domain == DOMAIN:
        kind = next((row.error for row in _TABLE if row.reason == info.reason), EdgewrightError)
    else:
        kind = _BY_CODE.get(code, ServiceError)
    return _build(kind, message, status)


def told_reason(failure: RpcFailure) -> str:
    """The reason in a failed call's ``ErrorInfo``, whoever's it is; empty where there is none."""
    info = _detail(_rich_status(failure.trailing_metadata()), ErrorInfo)
    return str(info.reason) if info is not None else ""


def reason_of(error: BaseException) -> str:
    """The reason that ``to_status`` gives: for logs and metrics."""
    return next((row.reason for row in _TABLE if isinstance(error, row.error)), _INTERNAL.reason)


def _build(kind: type[EdgewrightError], message: str, status: Status) -> EdgewrightError:
    retry = _detail(status, RetryInfo)
    if issubclass(kind, OverloadedError):
        if retry is None:
            return ServiceError(message)
        delay_s = retry.retry_delay.ToNanoseconds() / 1e9
        return kind(message, retry_after_s=max(delay_s, 0.0))  # other servers may send any
    if kind is InputError:
        request = _detail(status, BadRequest)
        violations = request.field_violations if request is not None else ()
        return InputError(message, field=violations[0].field if violations else "")
    return (IntegrityError if kind is ArtifactError else kind)(message)


def _is_disk_full(error: BaseException) -> bool:
    cause = error.__cause__
    store = isinstance(error, FeedbackStoreError)
    return store and isinstance(cause, OSError) and cause.errno in _DISK_FULL


def _attach(status: Any, detail: Message) -> None:
    status.details.add().Pack(detail)


def _rich_status(trailers: Iterable[tuple[str, Any]] | None) -> Status:
    for key, value in trailers or ():
        if key == STATUS_METADATA_KEY:
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status()


def _detail(status: Any, kind: Any) -> Any:
    for packed in status.details:
        detail = kind()
        try:
            if packed.Unpack(detail):
                return detail
        except DecodeError:
            continue
    return None


def _shortened(text: str) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return encoded.decode()
    return encoded[: MAX_MESSAGE_BYTES - 4].decode(errors="ignore") + " ..."
