"""Who calls, whether he may, and how much he has in flight. One edge asks, for every protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from edgewright.errors import CallerLimitError, PermissionDeniedError, UnauthenticatedError
from edgewright.serve.call_record import CallRecord
from edgewright.serve.reloaded import Reloaded
from edgewright.serve.tokens import Right, Tokens

_RIGHTS: Final = (
    ("/grpc.health.v1.", None),
    ("/inference.GRPCInferenceService/ServerLive", None),
    ("/inference.GRPCInferenceService/ServerReady", None),
    ("/edgewright.v1.FeedbackService/", Right.FEEDBACK),
    ("/edgewright.v1.AdminService/", Right.ADMIN),
)
# Of whose calls there may be a limit. A scrape or a command is wanted most when there are too many.
_LIMITED: Final = (Right.CALL, Right.FEEDBACK)
_ALL: Final = frozenset(Right)
_BEARER: Final = "bearer "
_RETRY_S: Final = 0.1


@dataclass(frozen=True)
class Peer:
    """What a call brings to be known by."""

    address: str  # without a port
    authorization: str = ""  # the header, as it came
    subject: str = ""  # of the client's certificate, where there is one

    @classmethod
    def of(cls, context: Any) -> Peer:
        """That of a gRPC call."""
        sent: Iterable[tuple[str, Any]] = context.invocation_metadata() or ()
        header = next((value for key, value in sent if key == "authorization"), "")
        names: Mapping[str, Any] = context.auth_context()
        subject = next(iter(names.get("x509_subject", ())), b"")
        if not subject and "x509_pem_cert" in names:
            subject = b"a certificate without a subject"
        return cls(
            _address(context.peer()),
            header if isinstance(header, str) else "",
            subject.decode("utf-8", "replace"),
        )


class Callers:
    """Lets calls in, and counts those of each caller until they leave.

    A caller goes by the name of his token, else by his certificate's subject, else by his address.
    """

    def __init__(
        self,
        tokens: Reloaded[Tokens] | None = None,
        *,
        wants_certificate: bool = False,
        most_calls: int | None = None,
        named: bool = False,
    ) -> None:
        """``most_calls`` of each in flight; ``named``: somebody else limits them by their names."""
        self._tokens = tokens
        self._wants_certificate = wants_certificate
        self._most_calls = most_calls
        self._named = named
        self._in_flight: dict[str, int] = {}  # holds those alone who have a call in flight

    @property
    def open(self) -> bool:
        """Whether it does not matter who calls."""
        return not (self._tokens or self._wants_certificate or self._most_calls or self._named)

    def enter(self, right: Right | None, peer: Peer, record: CallRecord | None = None) -> str:
        """Let a call in that needs ``right``; by what name it counts, to be given to ``leave``.

        ``record`` is told the name of one who is known and refused, too.

        Raises:
            UnauthenticatedError: nobody is known to call.
            PermissionDeniedError: he may not.
            CallerLimitError: he has as many calls in flight as he may.
        """
        if right is None:
            return ""
        name, rights = self._known(peer)
        if record is not None:
            record.known_as = name
        if right not in rights:
            raise PermissionDeniedError(
                f"the token of {name} lacks the right {right!s}; it has {', '.join(sorted(rights))}"
            )
        if right not in _LIMITED:
            return ""
        self._count(name)
        return name

    def leave(self, name: str) -> None:
        """The call is over."""
        calls = self._in_flight.get(name, 0)
        if calls > 1:
            self._in_flight[name] = calls - 1
        elif calls:
            del self._in_flight[name]

    def _known(self, peer: Peer) -> tuple[str, frozenset[Right]]:
        """The caller's name and rights."""
        if self._wants_certificate and not peer.subject:
            raise UnauthenticatedError(
                "this needs a client certificate of an authority that the server trusts"
            )
        if self._tokens is None:
            return peer.subject or peer.address, _ALL
        scheme = peer.authorization[: len(_BEARER)].lower()
        if scheme != _BEARER:
            raise UnauthenticatedError(
                "this needs a token; give a command of edgewright --token-file, and send from "
                "elsewhere the header `authorization: Bearer TOKEN`"
            )
        token = self._tokens.value.find(peer.authorization[len(_BEARER) :].strip())
        if token is None:
            raise UnauthenticatedError("the token is not one that the server knows")
        return token.name, token.rights

    def _count(self, name: str) -> None:
        if self._most_calls is None:
            return
        calls = self._in_flight.get(name, 0)
        if calls >= self._most_calls:
            raise CallerLimitError(
                f"{name} has {calls} calls in flight, which is the most that one caller may; "
                "wait for an answer before the next call",
                retry_after_s=_RETRY_S,
            )
        self._in_flight[name] = calls + 1


def _address(peer: str) -> str:
    """As HTTP has it: gRPC writes ipv4:127.0.0.1:80, and ipv6:%5B::1%5D:80."""
    plain = unquote(peer).removeprefix("ipv4:").removeprefix("ipv6:")
    return plain.rpartition(":")[0] or plain


def right_for(method: str) -> Right | None:
    """What calling a gRPC method takes; None where everybody may, as probes must."""
    return next((right for prefix, right in _RIGHTS if method.startswith(prefix)), Right.CALL)
