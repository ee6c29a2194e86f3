"""Ports of this machine: one that a server may have later, and one on which nobody answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from random import SystemRandom

_BELOW_CALLERS = (20_000, 30_000)


def free_port(above: int = 0) -> int:
    """One that is free, as are so many ``above`` it.

    Below those that the system gives callers: one of theirs may be anybody's by the time that it is
    listened on, and who calls it while nobody listens may be given that very port, and then speaks
    with himself.
    """
    while True:
        port = SystemRandom().randrange(*_BELOW_CALLERS)
        with ExitStack() as bound, suppress(OSError):
            for each in range(port, port + above + 1):
                bound.enter_context(socket.socket()).bind(("127.0.0.1", each))
            return port


@contextmanager
def silent_port() -> Iterator[int]:
    """One on which nobody listens, kept so that meanwhile nobody else does."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield int(kept.getsockname()[1])
