"""The TensorRT library: whether it is there, which version it is, and what it says."""

from __future__ import annotations

import logging
from typing import Any, Final, Protocol

from edgewright.backends.cuda import INSTALL
from edgewright.errors import BackendUnavailableError

OLDEST: Final = (10, 1)  # strong typing, set_input_shape and execute_async_v3 as used here
NEWEST_MAJOR: Final = 11

log = logging.getLogger(__name__)


class Messages(Protocol):
    """A logger in TensorRT's sense that keeps the errors it was told."""

    errors: list[str]


def tensorrt() -> Any:
    """The module ``tensorrt``, of a version that this code speaks.

    Raises:
        BackendUnavailableError: not installed, its libraries do not load, or another version.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:  # the bindings without libnvinfer, or not even them
        raise BackendUnavailableError(f"TensorRT cannot be loaded ({error}); {INSTALL}") from error
    version = str(tensorrt.__version__)
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < OLDEST or major > NEWEST_MAJOR:
        raise BackendUnavailableError(
            f"TensorRT {version} is installed, and versions 10.1 to 11 are known to work; "
            "run `pip install 'tensorrt>=10.1,<12'`"
        )
    return tensorrt


def messages(trt: Any) -> Messages:
    """A new logger; warnings and below go to Python's log, at its lowest level."""

    class _Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(msg)
            else:
                log.debug("%s", msg)

    collected: Messages = _Messages()
    return collected


def started(make: Any, told: Messages) -> Any:
    """``make(told)``: a Builder or a Runtime.

    Raises:
        BackendUnavailableError: TensorRT could not make one, as where the driver is too old.
    """
    try:
        return make(told)
    except (TypeError, RuntimeError) as error:  # pybind11's words for a null pointer
        raise BackendUnavailableError(
            f"TensorRT cannot start: {reasons(told) or error}; check the driver with `nvidia-smi`"
        ) from error


def reasons(told: Messages) -> str:
    """What TensorRT called an error since they were asked for last, on one line."""
    given = list(told.errors)
    del told.errors[: len(given)]  # others may be told meanwhile
    return "; ".join(given)
