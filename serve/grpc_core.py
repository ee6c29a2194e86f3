"""gRPC's core, which drives our server: the one module that knows where grpcio keeps it.

``grpc.aio`` spends three tasks, four events and as many wakes of the event loop on a call: 0.2 ms
of a core, six times what the core itself takes. grpcio wraps that for its own servers in a module
which is no public interface: a release may change it without a word. The tests pass with the first
and the last of ``TESTED``. When a server starts, one that lacks what is used here is told by name,
and of one that is older or later the log has a warning.
"""

from __future__ import annotations

import logging
import re
from operator import attrgetter
from typing import Final

import grpc
from grpc._cython import cygrpc as core

from edgewright.errors import BackendUnavailableError

__all__ = ["check_core", "core", "warn_of_untested"]

TESTED: Final = ("1.83.0", "1.85.3")
_INSTALL: Final = f"pip install 'grpcio>={TESTED[0]},<={TESTED[1]}'"
_USED: Final = (
    "Call.cancel", "Call.peer", "Call.start_server_batch", "CompletionQueue.poll",
    "CompletionQueue.shutdown", "CompletionType.queue_shutdown",
    "ReceiveCloseOnServerOperation.cancelled", "ReceiveMessageOperation.message",
    "SendInitialMetadataOperation", "SendMessageOperation", "SendStatusFromServerOperation",
    "Server.add_http2_port", "Server.cancel_all_calls", "Server.destroy",
    "Server.register_completion_queue", "Server.request_call", "Server.shutdown", "Server.start",
    "auth_context",
)  # fmt: skip

log = logging.getLogger(__name__)


def check_core() -> None:
    """Raise BackendUnavailableError where the grpcio that is installed cannot drive a server."""
    missing = [name for name in _USED if not _has(name)]
    if missing:
        raise BackendUnavailableError(
            f"grpcio {grpc.__version__} lacks {', '.join(missing)}, by which calls are served; "
            f"install one that is known to serve: {_INSTALL}"
        )


def warn_of_untested() -> None:
    """Where the grpcio that is installed is older or later than those that were tested."""
    first, last = map(_ordered, TESTED)
    if not first <= _ordered(grpc.__version__) <= last:
        log.warning(
            "grpcio %s has not been tested to serve, and may refuse or fail calls that others "
            "answer; install one that has: %s",
            grpc.__version__,
            _INSTALL,
        )


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _has(name: str) -> bool:
    try:
        attrgetter(name)(core)
    except AttributeError:
        return False
    return True
