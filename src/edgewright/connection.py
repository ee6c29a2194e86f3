"""How a client reaches its server: the target, encryption, and gRPC's channel options."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from edgewright.deadline import Deadline
from edgewright.errors import ConfigError
from edgewright.v1 import feedback_pb2_grpc, model_pb2_grpc, prediction_pb2_grpc

TIMEOUT_S: Final = 30.0
RETRIES: Final = 4
MAX_MESSAGE_BYTES: Final = 64 << 20
READY_TIMEOUT_S: Final = 5.0
WAIT_TIMEOUT_S: Final = 60.0

_SCHEME: Final = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|xds):")
_TOKEN: Final = re.compile(r"[!-~]+")
_HERE: Final = re.compile(r"localhost|127(\.\d{1,3}){3}|\[?::1\]?")
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(\d{1,5})")


@dataclass(frozen=True)
class Tls:
    """TLS, and a client certificate where the server wants one; PEM files.

    Without ``roots`` the certificates that come with gRPC are trusted.
    """

    roots: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        faults = [
            f"tls: no file {path}"
            for path in (self.roots, self.certificate, self.key)
            if path is not None and not path.is_file()
        ]
        if (self.certificate is None) != (self.key is None):
            faults.append("tls: a client certificate and its key are given together or not at all")
        if faults := faults or self._unusable():
            raise ConfigError(faults)

    def _unusable(self) -> list[str]:
        """What gRPC would tell as a handshake that failed, whatever the server is."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_ciphers("DEFAULT@SECLEVEL=0")  # how weak a key may be, gRPC decides
        faults = []
        try:
            if self.roots is not None:
                context.load_verify_locations(self.roots)
        except OSError as error:
            faults.append(f"tls: {self.roots} holds no certificate in PEM: {error}")
        try:
            if self.certificate is not None:
                # Without a password to try, OpenSSL asks the terminal for that of a locked key.
                context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
        except OSError as error:
            faults.append(
                f"tls: {self.certificate} and {self.key} are no certificate and its key, "
                f"in PEM and without a password: {error}"
            )
        return faults

    def credentials(self) -> grpc.ChannelCredentials:
        """gRPC's form of it; the files are read now.

        Raises:
            ConfigError: one of them cannot be read any more.
        """
        try:
            roots, key, certificate = (
                path.read_bytes() if path is not None else None
                for path in (self.roots, self.key, self.certificate)
            )
        except OSError as error:
            raise ConfigError([f"tls: {error.filename} cannot be read: {error}"]) from error
        return grpc.ssl_channel_credentials(roots, key, certificate)


@dataclass(frozen=True)
class Connection:
    """Whom a client calls, for how long it tries, and what its channel allows.

    Raises:
        ConfigError: tells every option that cannot work.
    """

    target: str
    timeout_s: float
    retries: int
    tls: Tls | None
    max_message_bytes: int
    clock: Callable[[], float]
    token: str | None = field(default=None, repr=False)
    token_in_clear: bool = False

    def __post_init__(self) -> None:
        faults = []
        named = _HOST_AND_PORT.fullmatch(self.target)
        if not _SCHEME.match(self.target) and not (named and 0 < int(named[2]) < 65536):
            faults.append(f"target {self.target!r}: HOST:PORT is expected, as in localhost:8001")
        if not 0 < self.timeout_s < float("inf"):
            faults.append(f"timeout_s={self.timeout_s}: a positive number of seconds is expected")
        if self.retries < 0:
            faults.append(f"retries={self.retries}: 0 or more is expected")
        if self.max_message_bytes < 1:
            faults.append(f"max_message_bytes={self.max_message_bytes}: 1 or more is expected")
        if self.token is not None and not _TOKEN.fullmatch(self.token):
            faults.append("token: printable characters without a space are expected")
        if self.token and not (self.tls or self.token_in_clear or _is_here(self.target)):
            faults.append(
                f"token: without TLS everybody between here and {self.target} could read it; give "
                "tls (--tls, --tls-ca) or, all the same, token_in_clear (--token-in-clear)"
            )
        if faults:
            raise ConfigError(faults)

    def deadline(self, timeout_s: float | None) -> Deadline:
        """The deadline of a call that begins now.

        Raises:
            ConfigError: ``timeout_s`` is not a positive, finite number of seconds.
        """
        return Deadline.after(self.timeout_s if timeout_s is None else timeout_s, self.clock)

    def closed(self) -> ConfigError:
        """What is said of a call by a client that is closed."""
        return ConfigError([f"this client of {self.target} is closed; make another one"])

    @property
    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What goes with every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else None

    def methods(self, channel: Any) -> dict[str, Any]:
        """RPC name -> callable, on a channel of either kind."""
        services: Any = prediction_pb2_grpc  # the generated stubs have no type information
        prediction = services.PredictionServiceStub(channel)
        services = model_pb2_grpc
        model = services.ModelServiceStub(channel)
        services = feedback_pb2_grpc
        feedback = services.FeedbackServiceStub(channel)
        methods = {
            "ClassifyText": prediction.ClassifyText,
            "ClassifyImage": prediction.ClassifyImage,
            "EmbedText": prediction.EmbedText,
            "EmbedImage": prediction.EmbedImage,
            "StreamClassify": prediction.StreamClassify,
            "ListModels": model.ListModels,
            "GetModel": model.GetModel,
            "SendFeedback": feedback.SendFeedback,
            "StreamFeedback": feedback.StreamFeedback,
        }
        return {name: partial(each, metadata=self.metadata) for name, each in methods.items()}

    def channel(self) -> grpc.Channel:
        """A channel for threads; it connects with the first call."""
        if self.tls is None:
            return grpc.insecure_channel(self.target, self._options())
        return grpc.secure_channel(self.target, self.tls.credentials(), self._options())

    def async_channel(self) -> grpc.aio.Channel:
        """A channel for the running event loop."""
        if self.tls is None:
            return grpc.aio.insecure_channel(self.target, self._options())
        return grpc.aio.secure_channel(self.target, self.tls.credentials(), self._options())

    def _options(self) -> list[tuple[str, Any]]:
        return [
            # A token that is meant to stay on this machine takes no way around.
            ("grpc.enable_http_proxy", int(self.tls is not None or self.token is None)),
            ("grpc.max_send_message_length", -1),  # the server's own limit is the one that counts
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.lb_policy_name", "round_robin"),
            # Left alone, gRPC waits up to two minutes between attempts to connect; a server that
            # has just come up should be found by the next retry.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]


def _is_here(target: str) -> bool:
    """Whether all of the target is this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    addresses = _SCHEME.sub("", target).rpartition("/")[2].split(",")
    return all(_HERE.fullmatch(address.rpartition(":")[0] or address) for address in addresses)
