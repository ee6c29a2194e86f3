"""Where traces go, if anywhere: OpenTelemetry is imported only then."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edgewright.errors import BackendUnavailableError

if TYPE_CHECKING:
    from edgewright.serve.tracing import Tracing


def is_endpoint(url: str) -> bool:
    """Whether ``url`` names a collector as http(s)://HOST:PORT."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname and parts.port)
    except ValueError:  # a port that is none
        return False


def open_tracing(endpoint: str | None, share: float) -> Tracing | None:
    """What traces to ``endpoint``, if any.

    Raises:
        BackendUnavailableError: OpenTelemetry is not installed.
    """
    if endpoint is None:
        return None
    try:
        from edgewright.serve.tracing import Tracing
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"--otlp-endpoint needs {error.name}, which is not installed; "
            "pip install 'edgewright[otel]', or leave the option out"
        ) from error
    return Tracing(endpoint, share)
