"""``edgewright admin``: what a running server serves, changed and told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from edgewright.connection_options import ConnectionOptions, connection_options
from edgewright.errors import ConfigError, ServiceError
from edgewright.options import Command, Group, output_options
from edgewright.output import Output

if TYPE_CHECKING:  # gRPC is imported when there is something to send
    from edgewright.v1.admin_pb2 import ModelStatus

F = TypeVar("F", bound=Callable[..., Any])
_TARGET: Final = "localhost:8003"
_LARGEST_VERSION: Final = 2**63 - 1
_VERSION: Final = click.IntRange(1, _LARGEST_VERSION)
_MODEL = click.argument("model")


def _server(command: F) -> F:
    """--target and --timeout."""
    target = click.option(
        "--target", metavar="HOST:PORT", required=True, help="Where the server's admin port is."
    )
    timeout = click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=300.0,
        help="Seconds that it may take; a version is loaded and proven in them.",
    )
    return target(timeout(connection_options(command)))


@click.group(
    cls=Group,
    no_args_is_help=True,
    examples=(
        f"edgewright admin status --target {_TARGET}",
        f"edgewright admin load news --target {_TARGET}",
    ),
)
def admin() -> None:
    """Change what a server started with --admin-port serves, or ask it.

    A change is written to the repository, so that every server that follows it does the same.
    """


@admin.command("status", cls=Command, examples=(f"edgewright admin status --target {_TARGET}",))
@click.argument("model", default="", required=False)
@_server
@output_options
def status(
    model: str, target: str, timeout: float, connection: ConnectionOptions, output: Output
) -> None:
    """Say what answers of MODEL, or of each, and what cannot."""
    from edgewright.v1.admin_pb2 import GetStatusRequest

    answer = _call(connection, target, timeout, "GetStatus", GetStatusRequest(model=model))
    models = [_to_json(each) for each in answer.models]
    lines = [line for each in answer.models for line in _lines(each)]
    told = [f"the repository cannot be followed: {answer.problem}"] if answer.problem else []
    output.result({"models": models, "problem": answer.problem}, [*told, *lines])


@admin.command(
    "load",
    cls=Command,
    examples=(
        f"edgewright admin load news --target {_TARGET}",
        f"edgewright admin load news --version 4 --target {_TARGET} --json",
    ),
)
@_MODEL
@click.option("--version", type=_VERSION, help="Which one.  [default: the highest]")
@_server
@output_options
def load(
    model: str,
    version: int | None,
    target: str,
    timeout: float,
    connection: ConnectionOptions,
    output: Output,
) -> None:
    """Make a version current.

    It is loaded, proven and warmed up first; where that fails, nothing changes. Ends an unload.
    """
    from edgewright.v1.admin_pb2 import LoadVersionRequest

    request = LoadVersionRequest(model=model, version=version or 0)
    _tell(_call(connection, target, timeout, "LoadVersion", request).status, output)


@admin.command(
    "rollback", cls=Command, examples=(f"edgewright admin rollback news --target {_TARGET}",)
)
@_MODEL
@_server
@output_options
def rollback(
    model: str, target: str, timeout: float, connection: ConnectionOptions, output: Output
) -> None:
    """Go back to the version before.

    It is proven first, like any other.
    """
    from edgewright.v1.admin_pb2 import RollbackModelRequest

    request = RollbackModelRequest(model=model)
    _tell(_call(connection, target, timeout, "RollbackModel", request).status, output)


@admin.command(
    "unload", cls=Command, examples=(f"edgewright admin unload news --target {_TARGET}",)
)
@_MODEL
@_server
@output_options
def unload(
    model: str, target: str, timeout: float, connection: ConnectionOptions, output: Output
) -> None:
    """Answer no more calls of MODEL.

    Until a version of it is loaded or published. Nothing is deleted.
    """
    from edgewright.v1.admin_pb2 import UnloadModelRequest

    request = UnloadModelRequest(model=model)
    _tell(_call(connection, target, timeout, "UnloadModel", request).status, output)


@admin.command(
    "traffic",
    cls=Command,
    examples=(
        f"edgewright admin traffic news --canary 5 --weight 0.1 --target {_TARGET}",
        f"edgewright admin traffic news --shadow 6 --target {_TARGET}",
        f"edgewright admin traffic news --target {_TARGET}",
    ),
)
@_MODEL
@click.option("--canary", type=_VERSION, help="Version that answers a share of the calls.")
@click.option(
    "--weight",
    type=click.FloatRange(0, 1, min_open=True),
    help="That share of the calls that name no version.",
)
@click.option("--shadow", type=_VERSION, help="Version that gets copies, and answers nobody.")
@_server
@output_options
def traffic(
    model: str,
    canary: int | None,
    weight: float | None,
    shadow: int | None,
    target: str,
    timeout: float,
    connection: ConnectionOptions,
    output: Output,
) -> None:
    """Set canary and shadow.

    They take the place of what was set; without either option there is none.
    """
    from edgewright.v1.admin_pb2 import SetTrafficRequest

    if (canary is None) != (weight is None):
        raise ConfigError("--canary and --weight are given together or not at all")
    request = SetTrafficRequest(
        model=model,
        canary_version=canary or 0,
        canary_weight=weight or 0.0,
        shadow_version=shadow or 0,
    )
    _tell(_call(connection, target, timeout, "SetTraffic", request).status, output)


def _call(
    options: ConnectionOptions, target: str, timeout: float, method: str, request: Any
) -> Any:
    """The answer; tried once, for whoever rolls back twice goes back too far."""
    import grpc

    from edgewright.failed_call import explained
    from edgewright.v1.admin_pb2_grpc import AdminServiceStub

    connection = options.connection(target, timeout)
    with connection.channel() as channel:
        stub = AdminServiceStub(channel)  # type: ignore[no-untyped-call]  # generated code
        try:
            timeout = connection.deadline(None).timeout_s
            return getattr(stub, method)(request, timeout=timeout, metadata=connection.metadata)
        except grpc.RpcError as failure:
            if failure.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise ServiceError(
                    f"{target} is no admin port; give the one that `edgewright serve --admin-port` "
                    "names"
                ) from failure
            raise explained(failure, target, timeout, "--admin-port") from failure


def _tell(status: ModelStatus, output: Output) -> None:
    output.result(_to_json(status), _lines(status))


def _to_json(status: ModelStatus) -> Mapping[str, Any]:
    canary = {"version": status.canary_version, "weight": status.canary_weight}
    return {
        "model": status.model,
        "wanted_version": status.wanted_version or None,
        "current_version": status.current_version or None,
        "loaded_versions": list(status.loaded_versions),
        "canary": canary if status.canary_version else None,
        "shadow_version": status.shadow_version or None,
        "unloaded": status.unloaded,
        "problems": [
            {"version": each.version or None, "message": each.message} for each in status.problems
        ],
    }


def _lines(status: ModelStatus) -> Iterator[str]:
    answers = f"version {status.current_version} answers" if status.current_version else "unloaded"
    if not status.current_version and not status.unloaded:
        answers = "nothing answers"
    if status.wanted_version not in (0, status.current_version) and not status.unloaded:
        answers += f", version {status.wanted_version} should"
    yield f"{status.model}: {answers}"
    if status.canary_version:
        yield f"  version {status.canary_version} answers {status.canary_weight:.2%} of the calls"
    if status.shadow_version:
        yield f"  version {status.shadow_version} gets copies"
    if len(status.loaded_versions) > 1:
        yield f"  loaded: {', '.join(map(str, status.loaded_versions))}"
    for problem in status.problems:
        yield f"  {problem.message}"
