"""What is known of the call that is being answered, for whoever counts, logs or traces it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from itertools import count
from typing import Any, Final, NamedTuple
from weakref import ref

from edgewright.serve.call import Call
from edgewright.serve.models import ServedModel

REQUEST_ID: Final = "x-request-id"  # in metadata and headers, of requests and of responses
# What a caller may name his call: bounded, and nothing that breaks a line of a log.
_GOOD_ID: Final = re.compile("[!-~]{1,128}")


class CallRecord:
    """One call of a method, from its arrival to its end. It belongs to the event loop."""

    __slots__ = (
        "_model", "answered_by", "caller", "epoch_ns", "held_s", "known_as", "messages", "method",
        "parent", "request_id", "rows", "span", "started", "trace_id", "work",
    )  # fmt: skip

    epoch_ns: int  # set with the span: of ``started`` and all moments by its clock

    def __init__(self, request_id: str, parent: Mapping[str, str] = {}) -> None:
        self.request_id = request_id
        self.parent = parent  # the W3C headers of the caller's trace
        self.span: Any = None  # OpenTelemetry's, on a server that traces
        self.trace_id = ""  # in hexadecimal, where the trace is kept
        self.method = ""
        self.caller = ""  # its address, on a server that logs calls
        self.known_as = ""  # by token, certificate or address, on a server that asks who calls
        self.started = 0.0  # by time.monotonic, as the batcher's clock
        self.held_s = 0.0  # for which its refusal has waited to be told
        self._model: ref[ServedModel] | None = None
        self.answered_by: tuple[str, int] | None = None  # the model's name and version, if known
        self.rows = 0  # that were asked for
        self.messages = 0  # of a stream, read so far; of one of them, its number
        self.work: Call | None = None  # what was let in; of a stream, each message has its own

    @property
    def model(self) -> ServedModel | None:
        """Who answers, once that is known and while it is held: a stream may be idle for long."""
        return self._model() if self._model is not None else None

    @model.setter
    def model(self, model: ServedModel | None) -> None:
        self._model = ref(model) if model is not None else None
        self.answered_by = (model.name, model.version) if model is not None else None

    def of_message(self, started: float) -> CallRecord:
        """A record of the next message of this stream, which was read then."""
        self.messages += 1
        record = CallRecord(self.request_id)
        record.messages = self.messages
        record.method, record.known_as = self.method, self.known_as
        record.started = started
        return record


# Of the call in whose context the code runs; the tasks that a call starts inherit it.
current_call: Final[ContextVar[CallRecord | None]] = ContextVar("current_call", default=None)


def cited(message: str) -> str:
    """``message``, with the id under which the log has more about the present call."""
    call = current_call.get()
    return message if call is None else f"{message}; request id {call.request_id}"


class Stage(NamedTuple):
    """A part of a computed call's time, by time.monotonic."""

    name: str
    started: float
    ended: float


def stages(record: CallRecord, ended: float) -> list[Stage]:
    """What was done when, of a call that ended then; nothing where it was not computed.

    Images wait, are decoded, and wait again for their batch, so that of those "queue" and
    "preprocess" come twice. Of a call that took several runs, the last one's.
    """
    work = record.work
    if work is None or work.run is None:
        return []
    run = work.run
    waiting = work.admitted
    found = []
    if work.decode_s:
        decoded = work.decode_started + work.decode_s
        found.append(Stage("queue", waiting, work.decode_started))
        found.append(Stage("preprocess", work.decode_started, decoded))
        waiting = decoded
    return [
        *found,
        Stage("queue", waiting, run.batch.taken),
        Stage("preprocess", run.batch.taken, run.batch.ended),
        Stage("compute", run.started, run.ended),
        Stage("postprocess", run.ended, ended),
    ]


class RequestIds:
    """Names calls: as their callers do, or else as nobody else does."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._numbers = count()

    def name(self, given: str | None) -> str:
        """``given``, if that can be one, or a new id."""
        if given is not None and _GOOD_ID.fullmatch(given):
            return given
        return f"{self._prefix}{next(self._numbers):08x}"
