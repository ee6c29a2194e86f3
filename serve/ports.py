"""Ports of servers, and why one cannot be had."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgewright.errors import ConfigError


def bound(
    host: str, port: int, option: str, add: Callable[[str], int], *, shared: bool = False
) -> int:
    """The port that ``add``, given an address of ``host``, has bound; ``shared`` with others.

    Raises:
        ConfigError: names ``option``, and why.
    """
    with _faults_told(host, port, option):
        if not shared:  # gRPC does not say why it could not bind, so that the system is asked first
            _claim(host, port)
        return add(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def reserved(host: str, port: int, option: str) -> socket.socket:
    """A socket that keeps ``port`` for processes of this user that share it by SO_REUSEPORT.

    It does not listen, so that no call comes to it.

    Raises:
        ConfigError: names ``option``, and why.
    """
    with _faults_told(host, port, option):
        _claim(host, port)  # whoever shares too would take calls in silence
        keeper = socket.socket(_family(host))
        try:
            keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            keeper.bind((host, port))
        except OSError:
            keeper.close()
            raise
        return keeper


def _claim(host: str, port: int) -> None:
    socket.create_server((host, port), family=_family(host)).close()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextmanager
def _faults_told(host: str, port: int, option: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "gRPC could not bind it"
        raise ConfigError(
            f"{option} {port} on {host} cannot be had ({reason}); "
            "choose another, or 0 for any that is free"
        ) from error
