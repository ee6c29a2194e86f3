"""Addresses and ports of servers, and why one cannot be had."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from edgewright.errors import ConfigError

# Either one is every interface, by IPv4 and by IPv6, as gRPC takes them.
EVERYWHERE: Final = ("0.0.0.0", "::")
_ATTEMPTS: Final = 16  # to find a port that is free by both families

_Address = tuple[socket.AddressFamily, str, tuple[object, ...]]  # the last is of IPv6: its scope


def bound(
    host: str, port: int, option: str, add: Callable[[str], int], *, shared: bool = False
) -> int:
    """The port that ``add``, given an address of ``host``, has bound; ``shared`` with others.

    gRPC binds every address of a host's name.

    Raises:
        ConfigError: names ``option``, and why.
    """
    with _faults_told(host, port, option):
        if not shared:  # gRPC does not say why it could not bind, so that the system is asked first
            for claimed in _sockets(host, port):
                claimed.close()
        return add(at(host, port))


def listening(host: str, port: int, option: str, *, reserved: bool) -> Sequence[socket.socket]:
    """Sockets that listen on every address of ``host``, all on the same port; 0 takes a free one.

    ``reserved``: another process keeps the port for this one.

    Raises:
        ConfigError: names ``option``, and why.
    """
    with _faults_told(host, port, option):
        sockets = _sockets(host, port, shared=reserved)
        for each in sockets:
            each.listen()
        return sockets


@contextmanager
def reserved(host: str, port: int, option: str) -> Iterator[int]:
    """Keeps a port for processes of this user that share it by SO_REUSEPORT, until it is left.

    Nobody listens on it here, so that no call comes to it.

    Raises:
        ConfigError: names ``option``, and why.
    """
    with ExitStack() as kept:
        with _faults_told(host, port, option):
            for claimed in _sockets(host, port):  # whoever shares too would take calls in silence
                claimed.close()
            keepers = [kept.enter_context(each) for each in _sockets(host, port, shared=True)]
        yield port_of(keepers)


def port_of(sockets: Sequence[socket.socket]) -> int:
    """The port that all of them have."""
    return int(sockets[0].getsockname()[1])


def at(host: str, port: int) -> str:
    """HOST:PORT, as gRPC, URLs and people have it: an IPv6 address goes in brackets."""
    bare = _bare(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def _sockets(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Bound to every address of ``host`` that this machine has, and to the same port of each.

    Raises:
        OSError: the last reason why not.
    """
    addresses = _addresses(_bare(host))
    for _ in range(0 if port or len(addresses) == 1 else _ATTEMPTS):
        with suppress(OSError):  # what is free by one family may be taken by the other
            return _bound_to(addresses, port, shared)
    return _bound_to(addresses, port, shared)


def _bound_to(addresses: Sequence[_Address], port: int, shared: bool) -> list[socket.socket]:
    with ExitStack() as opened:
        sockets = []
        for family, address, scope in addresses:
            each = opened.enter_context(socket.socket(family))
            # Without one, connections that have ended would keep the port for a minute; with both,
            # one that does not share could not tell that others do.
            reuse = socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR
            each.setsockopt(socket.SOL_SOCKET, reuse, 1)
            if family is socket.AF_INET6:  # IPv4 has a socket of its own
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind((address, port, *scope))
            if not shared:  # only of those that listen does the system refuse a second one
                each.listen()
            port = port_of([each])
            sockets.append(each)
        opened.pop_all()
        return sockets


def _addresses(host: str) -> list[_Address]:
    """Each once, of the families that this machine has."""
    hosts = EVERYWHERE if host in EVERYWHERE else (host,)
    found = dict.fromkeys(
        (family, str(address[0]), tuple(address[2:]))
        for each in hosts
        for family, *_, address in socket.getaddrinfo(each, None, type=socket.SOCK_STREAM)
        if family in (socket.AF_INET, socket.AF_INET6)
    )
    if len(found) > 1 and not has_ipv6():
        by_ipv4: list[_Address] = [each for each in found if each[0] is socket.AF_INET]
        if by_ipv4:  # else the system says why it cannot have the others
            return by_ipv4
    return list(found)


def has_ipv6() -> bool:
    """Whether this machine speaks IPv6 with itself; containers often do not."""
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


def _bare(host: str) -> str:
    return host.removeprefix("[").removesuffix("]")


@contextmanager
def _faults_told(host: str, port: int, option: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "gRPC could not bind it"
        if isinstance(error, UnicodeError):  # an empty label, or one over 63 letters
            reason = "this is no name of a host"
        elsewhere = isinstance(error, socket.gaierror | UnicodeError) or (
            isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL
        )
        remedy = (
            "the host must be an address of this machine, or a name of one"
            if elsewhere
            else "choose another, or 0 for any that is free"
        )
        raise ConfigError(
            f"{option} {port} on {host} cannot be had ({reason}); {remedy}"
        ) from error
