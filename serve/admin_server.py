"""The port of administration: apart from the callers', and on this machine alone by default."""

from __future__ import annotations

from collections.abc import Callable

from edgewright.serve.admin_service import AdminService
from edgewright.serve.call_edge import CallEdge
from edgewright.serve.grpc_options import connection_options
from edgewright.serve.ports import bound
from edgewright.serve.rpc_server import RpcServer
from edgewright.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server

AddPort = Callable[[RpcServer, str], int]


class AdminServer:
    """A gRPC server of its own; lives on the event loop."""

    def __init__(
        self, service: AdminService, edge: CallEdge, host: str, port: int, add_port: AddPort
    ) -> None:
        """Bind ``port``; 0 takes a free one. ``add_port`` says how it is encrypted.

        Raises:
            ConfigError: it cannot be had.
        """
        self._rpc = RpcServer(edge, connection_options())
        add_AdminServiceServicer_to_server(service, edge)  # type: ignore[no-untyped-call]
        self.port = bound(host, port, "--admin-port", lambda address: add_port(self._rpc, address))

    async def start(self) -> None:
        """Take calls."""
        self._rpc.start()

    async def stop(self, grace_s: float | None) -> None:
        """Refuse calls; those in flight have so long to end."""
        await self._rpc.stop(grace_s)
