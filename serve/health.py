"""The gRPC health protocol (grpc.health.v1): Check, Watch, and List (grpcio-health-checking 1.85).

Known names are "" for the server as a whole, the full name of each service of ours, and the name
of each model. All turn SERVING together, when every model has passed its goldens, and NOT_SERVING
together, before the server drains.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from edgewright.errors import ModelNotFoundError

WHOLE_SERVER = ""


class HealthService:
    """Statuses by name, and whoever watches them. Lives on the event loop.

    Not grpcio-health-checking's own servicer: there the first watcher of a name that leaves takes
    the condition that the other watchers wait on with it, and they hear nothing more.
    """

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {WHOLE_SERVER: False}
        self._changed = asyncio.Event()

    def set(self, names: Iterable[str], serving: bool) -> None:
        """Set the status of ``names`` and tell the watchers."""
        self._serving.update(dict.fromkeys(names, serving))
        self._tell()

    def set_all(self, serving: bool) -> None:
        """Set the status of every known name and tell the watchers."""
        self.set(list(self._serving), serving)

    async def Check(  # noqa: N802 -- the protocol's name
        self, request: HealthCheckRequest, _context: Any
    ) -> HealthCheckResponse:
        """The status now; for an unknown name NOT_FOUND, as the protocol says."""
        if request.service not in self._serving:
            known = ", ".join(repr(name) for name in self._serving)
            raise ModelNotFoundError(f"no service {request.service!r}; there are: {known}")
        return HealthCheckResponse(status=self._status(request.service))

    async def List(self, _request: Any, _context: Any) -> Any:  # noqa: N802 -- the protocol's name
        """Every known name with its status now; reached where grpcio-health-checking knows it."""
        statuses = {name: HealthCheckResponse(status=self._status(name)) for name in self._serving}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(  # noqa: N802 -- the protocol's name
        self, request: HealthCheckRequest, _context: Any
    ) -> AsyncIterator[HealthCheckResponse]:
        """The status now and each time it changes; SERVICE_UNKNOWN for an unknown name."""
        told = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                told = status
                yield HealthCheckResponse(status=status)
            await changed.wait()

    def _status(self, name: str) -> Any:
        if name not in self._serving:
            return HealthCheckResponse.SERVICE_UNKNOWN
        serving = self._serving[name]
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
