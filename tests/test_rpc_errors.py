from __future__ import annotations

import errno
from collections.abc import Sequence

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright import errors
from edgewright.errors import (
    BackendUnavailableError,
    CallerLimitError,
    ConfigError,
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
from edgewright.rpc_errors import STATUS_METADATA_KEY, from_rpc_error, reason_of, to_status

Code = grpc.StatusCode
CASES = [
    (InputError("bad", field="texts[2]"), Code.INVALID_ARGUMENT, "INPUT_INVALID"),
    (IntegrityError("bad"), Code.FAILED_PRECONDITION, "BUNDLE_CORRUPT"),
    (ModelNotFoundError("bad"), Code.NOT_FOUND, "MODEL_NOT_FOUND"),
    (BackendUnavailableError("bad"), Code.FAILED_PRECONDITION, "BACKEND_MISSING"),
    (GpuLostError("bad"), Code.UNAVAILABLE, "GPU_LOST"),
    (NotReadyError("bad"), Code.UNAVAILABLE, "MODEL_NOT_READY"),
    (OverloadedError("bad", retry_after_s=0.25), Code.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    (CallerLimitError("bad", retry_after_s=0.25), Code.RESOURCE_EXHAUSTED, "CALLER_LIMIT"),
    (UnauthenticatedError("bad"), Code.UNAUTHENTICATED, "UNAUTHENTICATED"),
    (PermissionDeniedError("bad"), Code.PERMISSION_DENIED, "PERMISSION_DENIED"),
    (FeedbackStoreError("bad"), Code.UNAVAILABLE, "FEEDBACK_NOT_DURABLE"),
    (DeadlineError("bad"), Code.DEADLINE_EXCEEDED, "DEADLINE"),
]


class Failure:
    """A failed call, as gRPC tells it."""

    def __init__(self, code: Code, details: str | None, *trailers: tuple[str, str | bytes]) -> None:
        self._code, self._details, self._trailers = code, details, trailers

    def code(self) -> Code:
        return self._code

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return self._trailers


def over_the_wire(status: Status) -> Failure:
    code = next(code for code in Code if code.value[0] == status.code)
    trailer = (STATUS_METADATA_KEY, status.SerializeToString())
    return Failure(code, status.message, ("other", "x"), trailer)


def unpacked(status: Status, kind: type) -> object:
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            return message
    return None


@pytest.mark.parametrize(("error", "code", "reason"), CASES)
def test_an_error_has_its_code_its_reason_and_its_message(
    error: EdgewrightError, code: Code, reason: str
) -> None:
    status = to_status(error)
    assert status.code == code.value[0]
    assert status.message == "bad"
    assert unpacked(status, ErrorInfo) == ErrorInfo(reason=reason, domain="edgewright")
    assert reason_of(error) == reason


@pytest.mark.parametrize(("error", "code", "reason"), CASES)
def test_an_error_comes_back_as_it_went(error: EdgewrightError, code: Code, reason: str) -> None:
    back = from_rpc_error(over_the_wire(to_status(error)))
    assert type(back) is type(error)
    assert str(back) == "bad"
    assert vars(back) == vars(error)


def test_a_bad_input_names_its_field() -> None:
    status = to_status(InputError("texts[2] is empty", field="texts[2]"))
    violation = BadRequest.FieldViolation(field="texts[2]", description="texts[2] is empty")
    assert unpacked(status, BadRequest) == BadRequest(field_violations=[violation])


def test_an_overload_says_when_to_try_again() -> None:
    retry = unpacked(to_status(OverloadedError("full", retry_after_s=1.25)), RetryInfo)
    assert isinstance(retry, RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 1250


@pytest.mark.parametrize(
    "error", [ValueError("password=hunter2"), EdgewrightError("a bug"), ConfigError("a path")]
)
def test_the_unforeseen_is_told_in_general_words(error: Exception) -> None:
    status = to_status(error)
    assert status.code == Code.INTERNAL.value[0]
    assert str(error) not in str(status)
    assert unpacked(status, ErrorInfo) == ErrorInfo(reason="INTERNAL", domain="edgewright")
    assert type(from_rpc_error(over_the_wire(status))) is EdgewrightError


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_exhaustion_and_not_a_pause(number: int) -> None:
    error = FeedbackStoreError("no room for feedback")
    error.__cause__ = OSError(number, "full")
    assert to_status(error).code == Code.RESOURCE_EXHAUSTED.value[0]
    assert type(from_rpc_error(over_the_wire(to_status(error)))) is FeedbackStoreError


@settings(deadline=None)
@given(st.text(max_size=4000), st.text(max_size=4000))
def test_a_status_fits_into_the_headers_that_carry_it(message: str, field: str) -> None:
    status = to_status(InputError(message, field=field))
    percent_encoded = 3 * len(status.message.encode())
    base64 = len(status.SerializeToString()) * 4 / 3
    assert percent_encoded + base64 < 8192
    short = len(message.encode()) <= 1000
    assert not short or status.message == message


def test_a_lone_surrogate_does_not_break_the_status() -> None:
    assert to_status(ModelNotFoundError("no model '\ud800'")).message == "no model '?'"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.UNAVAILABLE, NotReadyError),
        (Code.DEADLINE_EXCEEDED, DeadlineError),
        (Code.NOT_FOUND, ModelNotFoundError),
        (Code.INVALID_ARGUMENT, InputError),
        (Code.RESOURCE_EXHAUSTED, ServiceError),
        (Code.UNIMPLEMENTED, ServiceError),
        (Code.CANCELLED, ServiceError),
        (Code.INTERNAL, EdgewrightError),
        (Code.UNKNOWN, EdgewrightError),
    ],
)
def test_a_peer_without_reasons_is_judged_by_its_code(
    code: Code, kind: type[EdgewrightError]
) -> None:
    back = from_rpc_error(Failure(code, "from gRPC itself"))
    assert type(back) is kind
    assert str(back) == "from gRPC itself"


@pytest.mark.parametrize("code", list(Code))
def test_every_code_gives_an_error_with_a_message(code: Code) -> None:
    assert code.name in str(from_rpc_error(Failure(code, None)))


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_garbled_details_are_ignored(garbage: bytes) -> None:
    failure = Failure(Code.NOT_FOUND, "gone", (STATUS_METADATA_KEY, garbage))
    assert isinstance(from_rpc_error(failure), EdgewrightError)


def test_another_domains_reason_is_not_taken_for_ours() -> None:
    status = Status(code=Code.UNAVAILABLE.value[0], message="proxy")
    status.details.add().Pack(ErrorInfo(reason="INPUT_INVALID", domain="proxy.example"))
    assert type(from_rpc_error(over_the_wire(status))) is NotReadyError


def test_every_service_error_has_a_reason_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, ServiceError) and kind is not ServiceError
    ]
    reasons = {
        reason_of(kind("", retry_after_s=1) if issubclass(kind, OverloadedError) else kind(""))
        for kind in kinds
    }
    assert len(reasons) == len(kinds)
    assert "INTERNAL" not in reasons
