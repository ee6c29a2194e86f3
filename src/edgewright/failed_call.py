"""What a failed call was, in words that say what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from edgewright.errors import EdgewrightError
from edgewright.rpc_errors import STATUS_METADATA_KEY, RpcFailure, from_rpc_error


@dataclass(frozen=True)
class _Explained:
    """A failed call whose message says what to do about it."""

    failure: RpcFailure
    message: str

    def code(self) -> grpc.StatusCode:
        return self.failure.code()

    def details(self) -> str:
        return self.message

    def trailing_metadata(self) -> Iterable[tuple[str, Any]] | None:
        return self.failure.trailing_metadata()


def explained(
    failure: RpcFailure, target: str, timeout_s: float, option: str = "--port"
) -> EdgewrightError:
    """The exception that a failed call stands for, with a message that says what to do about it.

    ``option`` of `edgewright serve` names the port that was meant.
    """
    told_by_server = any(key == STATUS_METADATA_KEY for key, _ in failure.trailing_metadata() or ())
    details = failure.details() or failure.code().name
    if told_by_server:
        message = f"{target}: {details}"
    elif failure.code() is grpc.StatusCode.UNAVAILABLE:
        message = _unreachable(target, details, option)
    elif failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = late(target, timeout_s)
    elif dropped(failure):
        message = (
            f"{target} dropped the call unseen, as gRPC does where more calls come than the server "
            "can look at; try again later, or ask another replica"
        )
    elif failure.code() is grpc.StatusCode.UNIMPLEMENTED:
        message = (
            f"{target} answers in gRPC, but not this call ({details}); "
            f"give the port that `edgewright serve {option}` names"
        )
    else:
        message = f"{target}: {details}"
    return from_rpc_error(_Explained(failure, message))


def dropped(failure: RpcFailure) -> bool:
    """Whether the server's gRPC cancelled the call; what this side cancels has other details."""
    return failure.code() is grpc.StatusCode.CANCELLED and failure.details() == "CANCELLED"


def late(target: str, timeout_s: float) -> str:
    """What is said of a call whose deadline has passed."""
    return f"no answer from {target} within {timeout_s:g} s; allow more, or send fewer texts"


def _unreachable(target: str, details: str, option: str) -> str:
    """The next step by what gRPC says of the connection, which has no code of its own."""
    said = details.lower()
    if "http/2" in said or "http1" in said or "alpn" in said:
        return (
            f"{target} answers, but not in gRPC ({details}); is it the metrics port? "
            f"Give the port that `edgewright serve {option}` names"
        )
    if "hostname verification" in said or "not in peer certificate" in said:
        return (
            f"the certificate of {target} is of another host ({details}); call it by a name that "
            "its certificate has, or give it one that has this name (subjectAltName)"
        )
    if "handshake" in said:
        return (
            f"the TLS handshake with {target} failed ({details}); does the server speak TLS, "
            "and are the root certificates those that signed its own?"
        )
    if "socket closed" in said:
        return (
            f"{target} closes the connection ({details}); does it want TLS (--tls-ca), or a "
            "certificate of this client (--tls-cert and --tls-key), valid and of an authority that "
            "it trusts?"
        )
    if "resol" in said or "dns" in said or "lookup" in said:
        return f"no host goes by the name in {target} ({details}); check the spelling"
    port = target.rpartition(":")[2]
    given = f" {option} {port}" if port.isdigit() else ""
    return (
        f"no gRPC server answers at {target} ({details}); "
        f"start one with `edgewright serve REPOSITORY{given}`"
    )
