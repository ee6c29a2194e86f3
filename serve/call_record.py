"""What is known of the call that is being answered, for whoever logs, counts or traces it."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from edgewright.serve.call import BatchModel


class CallRecord:
    """One call of a method, from its arrival to its end. It belongs to the event loop."""

    __slots__ = ("model",)

    def __init__(self) -> None:
        self.model: BatchModel | None = None  # once it is known


# Of the call in whose context the code runs; tasks and threads that a call starts inherit it.
current_call: Final[ContextVar[CallRecord | None]] = ContextVar("current_call", default=None)
