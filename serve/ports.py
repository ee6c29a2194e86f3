"""Ports of gRPC servers, and why one cannot be had."""

from __future__ import annotations

import socket
from collections.abc import Callable

from edgewright.errors import ConfigError


def bound(host: str, port: int, option: str, add: Callable[[str], int]) -> int:
    """The port that ``add``, given an address of ``host``, has bound.

    Raises:
        ConfigError: names ``option``, and why.
    """
    ipv6 = ":" in host
    try:
        # gRPC does not say why it could not bind, so that the system is asked first.
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        socket.create_server((host, port), family=family).close()
        return add(f"[{host}]:{port}" if ipv6 else f"{host}:{port}")
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "gRPC could not bind it"
        raise ConfigError(
            f"{option} {port} on {host} cannot be had ({reason}); "
            "choose another, or 0 for any that is free"
        ) from error
