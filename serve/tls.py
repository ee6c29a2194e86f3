"""TLS for both ports: certificate, key and the clients' authority, read again when they change."""

from __future__ import annotations

import logging
import ssl
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from edgewright.errors import ConfigError
from edgewright.serve.reloaded import Reloaded, contents_of

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files; with ``client_ca``, clients need a certificate of its."""

    certificate: Path  # the server's own first, then those that lead to a root
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> Mapping[str, Path]:
        """All that there are, by option: certificate, key, authority."""
        paths = {"--tls-cert": self.certificate, "--tls-key": self.key}
        return paths if self.client_ca is None else {**paths, "--tls-client-ca": self.client_ca}


@dataclass(frozen=True)
class Identity:
    """What the files said: as gRPC wants it, as asyncio wants it, and until when it holds."""

    rpc: Any  # grpc.ServerCertificateConfiguration
    context: ssl.SSLContext
    expires: datetime


class Tls:
    """A server's identity, the one that its files hold now."""

    def __init__(self, files: TlsFiles, told: Callable[[str, bool], None]) -> None:
        """Read the files; ConfigError tells everything that is wrong with them."""
        self.wants_clients = files.client_ca is not None
        self.files = Reloaded("tls", files.paths, lambda pem: read_identity(files, pem), told)

    @property
    def identity(self) -> Identity:
        """For connections that begin now."""
        return self.files.value

    def server_credentials(self) -> grpc.ServerCredentials:
        """gRPC's form, which asks at every handshake; connections go on with what they began."""
        given = self.identity

        def newer() -> Any:
            nonlocal given
            if self.identity is given:
                return None
            given = self.identity
            return given.rpc

        return grpc.dynamic_ssl_server_credentials(
            given.rpc, newer, require_client_authentication=self.wants_clients
        )


def read_identity(files: TlsFiles, pem: Sequence[bytes]) -> Identity:
    """What ``pem``, the contents of ``files``, amounts to; an expired certificate is warned of.

    Raises:
        ConfigError: every reason why it cannot be used.
    """
    certificates, expires = _checked(files, pem)
    _warn(files, certificates[0])
    context = _context(files)
    # OpenSSL takes files only: were they swapped meanwhile, the two ports would differ.
    if contents_of(files.paths) != list(pem):
        raise ConfigError(f"{files.certificate} and its key changed while they were read")
    roots = pem[2] if files.client_ca is not None else None
    rpc = grpc.ssl_server_certificate_configuration([(pem[1], pem[0])], root_certificates=roots)
    return Identity(rpc, context, expires)


def _checked(files: TlsFiles, pem: Sequence[bytes]) -> tuple[list[Certificate], datetime]:
    """The server's certificates and when the first of them expires."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    faults = []
    certificates = _certificates(pem[0])
    if not certificates:
        faults.append(f"--tls-cert {files.certificate} holds no certificate in PEM")
    try:
        key = load_pem_private_key(pem[1], password=None)
    except TypeError:
        faults.append(
            f"--tls-key {files.key} is encrypted; decrypt it with "
            f"`openssl pkey -in {files.key} -out KEY`"
        )
    except Exception:  # cryptography's Rust raises several kinds of its own
        faults.append(f"--tls-key {files.key} holds no private key in PEM")
    else:
        if certificates and certificates[0].public_key() != key.public_key():
            faults.append(
                f"--tls-key {files.key} does not belong to --tls-cert {files.certificate}, whose "
                "first certificate has another public key"
            )
    if files.client_ca is not None and not _certificates(pem[2]):
        faults.append(f"--tls-client-ca {files.client_ca} holds no certificate in PEM")
    if faults:
        raise ConfigError(faults)
    return certificates, min(each.not_valid_after_utc for each in certificates)


def _certificates(pem: bytes) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(pem)
    except ValueError:
        return []


def _warn(files: TlsFiles, certificate: Certificate) -> None:
    """What works, and is no good."""
    now = datetime.now(UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end <= now:
        log.warning("--tls-cert %s expired on %s; clients will refuse it", files.certificate, end)
    if begin > now:
        log.warning("--tls-cert %s holds from %s on only", files.certificate, begin)
    if files.key.stat().st_mode & stat.S_IROTH:
        log.warning("--tls-key %s can be read by everybody; `chmod 600` it", files.key)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.certificate, files.key)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            # Probes have no certificate; whatever else is asked needs one (``Callers``).
            context.verify_mode = ssl.CERT_OPTIONAL
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"--tls-cert {files.certificate} cannot be used: {error}") from error
    return context
