"""The methods of generated code on a ``grpc.aio`` server, which finds them by their names alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class MethodsByName:
    """Stands for a server where the ``add_...Servicer_to_server`` of generated code wants one.

    They add their methods twice: by name, and registered one by one. Of every registered method
    ``grpc.aio`` keeps a pending call, and for each call that comes it waits for all of them anew:
    with two dozen methods a tenth of what an RPC costs.
    """

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """By name."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Not registered: ``add_generic_rpc_handlers`` gets them too."""
