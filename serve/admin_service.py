"""edgewright.v1.AdminService: changes what is served, and tells what is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgewright.errors import ArtifactError, ConfigError, InputError, ModelNotFoundError
from edgewright.pointer import Canary
from edgewright.repository import Repository
from edgewright.serve.call_record import current_call
from edgewright.serve.follower import Follower
from edgewright.serve.problems import REPOSITORY
from edgewright.serve.registry import Registry
from edgewright.v1 import admin_pb2
from edgewright.v1.admin_pb2_grpc import AdminServiceServicer

log = logging.getLogger(__name__)


class AdminService(AdminServiceServicer):
    """Words the follower for the wire; raises what ``rpc_errors`` maps to a status."""

    def __init__(self, repository: Repository, registry: Registry, follower: Follower) -> None:
        self._repository = repository
        self._registry = registry
        self._follower = follower

    async def LoadVersion(  # noqa: N802 -- the name in the .proto
        self, request: admin_pb2.LoadVersionRequest, context: Any
    ) -> admin_pb2.LoadVersionResponse:
        """Make a version current; raises as ``Follower.make_current``."""
        with _told(request, context):
            versions = await asyncio.to_thread(self._repository.versions, request.model)
            version = request.version or versions[-1]
            await self._follower.make_current(request.model, version)
        return admin_pb2.LoadVersionResponse(status=self._status(request.model))

    async def RollbackModel(  # noqa: N802 -- the name in the .proto
        self, request: admin_pb2.RollbackModelRequest, context: Any
    ) -> admin_pb2.RollbackModelResponse:
        """Go back to the version before; raises as ``Follower.rollback``."""
        with _told(request, context):
            await self._follower.rollback(request.model)
        return admin_pb2.RollbackModelResponse(status=self._status(request.model))

    async def UnloadModel(  # noqa: N802 -- the name in the .proto
        self, request: admin_pb2.UnloadModelRequest, context: Any
    ) -> admin_pb2.UnloadModelResponse:
        """Answer no more calls of a model; raises as ``Follower.unload``."""
        with _told(request, context):
            await self._follower.unload(request.model)
        return admin_pb2.UnloadModelResponse(status=self._status(request.model))

    async def SetTraffic(  # noqa: N802 -- the name in the .proto
        self, request: admin_pb2.SetTrafficRequest, context: Any
    ) -> admin_pb2.SetTrafficResponse:
        """Set canary and shadow; raises as ``Follower.set_traffic``."""
        with _told(request, context):
            canary = _canary(request)
            shadow = request.shadow_version or None
            await self._follower.set_traffic(request.model, canary, shadow)
        return admin_pb2.SetTrafficResponse(status=self._status(request.model))

    async def GetStatus(  # noqa: N802 -- the name in the .proto
        self, request: admin_pb2.GetStatusRequest, _context: Any
    ) -> admin_pb2.GetStatusResponse:
        """What is served of one model, or of each."""
        problems = self._follower.problems
        names = {*self._registry.names(), *self._follower.plans, *problems.names()}
        if request.model and request.model not in names:
            known = ", ".join(sorted(names)) or "none"
            raise ModelNotFoundError(f"no model {request.model!r}; there are: {known}")
        asked = [request.model] if request.model else sorted(names)
        return admin_pb2.GetStatusResponse(
            models=[self._status(name) for name in asked],
            problem="".join(problems.of(REPOSITORY).values()),
        )

    def _status(self, name: str) -> admin_pb2.ModelStatus:
        lineup, plan = self._registry.lineup(name), self._follower.plans.get(name)
        problems = self._follower.problems.of(name)
        status = admin_pb2.ModelStatus(
            model=name,
            wanted_version=plan.current if plan else 0,
            unloaded=plan is not None and plan.pointer.unloaded,
            problems=[
                admin_pb2.VersionProblem(version=version, message=message)
                for version, message in sorted(problems.items())
            ],
        )
        if lineup is not None:
            status.current_version = lineup.current if lineup.versions else 0
            status.loaded_versions.extend(lineup.versions)
            status.canary_version = lineup.canary or 0
            status.canary_weight = lineup.canary_weight if lineup.canary else 0.0
            status.shadow_version = lineup.shadow or 0
        return status


def _canary(request: admin_pb2.SetTrafficRequest) -> Canary | None:
    version, weight = request.canary_version, request.canary_weight
    if not version and weight:
        raise InputError(
            f"canary_weight is {weight:g} without a canary_version; name one",
            field="canary_version",
        )
    return Canary(version, weight) if version else None


@contextmanager
def _told(request: Any, context: Any) -> Iterator[None]:
    """Log who changed what; errors that are not meant for the wire, in words of those that are."""
    if not request.model:
        raise InputError("model is empty; name one", field="model")
    try:
        yield
    except ConfigError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise ArtifactError(
            f"the repository cannot be changed by this server: {error}; use `edgewright publish` "
            "or `rollback` where it can be written, and this server follows"
        ) from error
    record = current_call.get()
    caller = (record.known_as if record else "") or context.peer()
    done = type(request).__name__.removesuffix("Request")
    log.info("%s of %s, by %s", done, request.model, caller)
