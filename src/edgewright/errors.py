"""Every error edgewright raises on purpose, as one tree.

    EdgewrightError                    exit 1
    |- ConfigError (ValueError)        exit 2   options or configuration; all faults told at once
    |- DataError                       exit 2   examples: names file, row, column, and what to do
    |- InputError                      exit 2   one request's input
    |- AccuracyGateError               exit 3   the loss is proven to exceed the budget
    |- GateInconclusiveError           exit 7   too few rows to prove anything
    |- ArtifactError                   exit 4
    |  |- ArtifactNotFoundError                 nothing there, or not the kind of artifact asked for
    |  `- IntegrityError                        a byte differs from what was sealed
    |- ModelNotFoundError              exit 4   the server or the repository has no such model
    |- BackendUnavailableError         exit 5   a runtime, device or library is missing
    |- AccessError                     exit 8   the server does not let this caller in
    |  |- UnauthenticatedError                  it does not know who calls
    |  `- PermissionDeniedError                 it knows, and he may not
    `- ServiceError                    exit 6   the service cannot answer now
       |- NotReadyError
       |  `- GpuLostError                       until the process is started again
       |- OverloadedError                       carries retry_after_s
       |  `- CallerLimitError                   it is this caller who has too much in flight
       |- FeedbackStoreError
       `- DeadlineError

A message names the object, what was expected of it, and the next step. ``rpc_errors`` maps the same
tree to gRPC codes; nothing else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class EdgewrightError(Exception):
    """Base of every deliberate error; anything else that escapes is a bug."""

    exit_code: ClassVar[int] = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied, also into another process, as it is: whatever it was made from."""
        return _same, (type(self), self.args), self.__dict__


class ConfigError(EdgewrightError, ValueError):
    """Options or configuration that cannot work; holds every fault found, not only the first."""

    exit_code = 2

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults: tuple[str, ...] = (faults,) if isinstance(faults, str) else tuple(faults)
        super().__init__("\n".join(self.faults))


class DataError(EdgewrightError):
    """Examples that cannot be used; the message names file, row and column where they are known."""

    exit_code = 2


class InputError(EdgewrightError):
    """One request's input is unusable; ``field`` names the request field at fault."""

    exit_code = 2

    def __init__(self, message: str, *, field: str = "") -> None:
        self.field = field
        super().__init__(message)


class AccuracyGateError(EdgewrightError):
    """Every candidate faster than the reference is proven to lose more than the budget."""

    exit_code = 3


class GateInconclusiveError(EdgewrightError):
    """No candidate passed, and at least one might with more rows."""

    exit_code = 7


class ArtifactError(EdgewrightError):
    """A checkpoint, bundle or repository is unusable."""

    exit_code = 4


class ArtifactNotFoundError(ArtifactError):
    """There is no artifact at this path, or one of another kind."""


class IntegrityError(ArtifactError):
    """An artifact's bytes differ from what its seal says; names the first file that is wrong."""


class ModelNotFoundError(EdgewrightError):
    """No model, or no version of it, goes by this name."""

    exit_code = 4


class BackendUnavailableError(EdgewrightError):
    """A runtime, device or library is missing; the message says how to install it."""

    exit_code = 5


class AccessError(EdgewrightError):
    """The server does not let this caller do this."""

    exit_code = 8


class UnauthenticatedError(AccessError):
    """Who calls is not known: no token or certificate, or one that does not hold."""


class PermissionDeniedError(AccessError):
    """Who calls is known, and lacks the right."""


class ServiceError(EdgewrightError):
    """The service cannot answer this call now."""

    exit_code = 6


class NotReadyError(ServiceError):
    """The server or the model is still starting, draining, or not reachable."""


class GpuLostError(NotReadyError):
    """A fault on the GPU has made it unusable to this process, which must be started again."""


class OverloadedError(ServiceError):
    """The queue is full; try again after ``retry_after_s`` seconds."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class CallerLimitError(OverloadedError):
    """One caller has as many calls in flight, or rows waiting, as he may; others are answered."""


class FeedbackStoreError(ServiceError):
    """Feedback could not be made durable, so it was not acknowledged."""


class DeadlineError(ServiceError):
    """The caller's deadline passed before the answer was there."""


def _same(kind: type[EdgewrightError], args: tuple[Any, ...]) -> EdgewrightError:
    return kind.__new__(kind, *args)
