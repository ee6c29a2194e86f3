"""gRPC's core, which drives our server: the one module that knows where grpcio keeps it.

``grpc.aio`` spends three tasks, four events and as many wakes of the event loop on a call: 0.2 ms
of a core, six times what the core itself takes. grpcio wraps that for its own servers in a module
which is no public interface. It has been the same from 1.72 to 1.85; a release that has changed it
is told by name when a server starts.
"""

from __future__ import annotations

from typing import Final

import grpc
from grpc._cython import cygrpc as core

from edgewright.errors import BackendUnavailableError

__all__ = ["check_core", "core"]

_USED: Final = (
    "CompletionQueue", "CompletionType", "ReceiveCloseOnServerOperation", "ReceiveMessageOperation",
    "SendInitialMetadataOperation", "SendMessageOperation", "SendStatusFromServerOperation",
    "Server", "StatusCode", "auth_context",
)  # fmt: skip


def check_core() -> None:
    """Raise BackendUnavailableError where the grpcio that is installed cannot drive a server."""
    missing = [name for name in _USED if not hasattr(core, name)]
    if missing:
        raise BackendUnavailableError(
            f"grpcio {grpc.__version__} lacks {', '.join(missing)}, by which calls are served; "
            "install one that is known to serve: pip install 'grpcio>=1.72.1,<=1.85.0'"
        )
