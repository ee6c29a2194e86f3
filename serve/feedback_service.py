"""edgewright.v1.FeedbackService: entries in, one acknowledgement for each once it is durable."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Final

from edgewright.errors import BackendUnavailableError, InputError
from edgewright.serve.call_observer import CallObserver
from edgewright.serve.call_record import current_call
from edgewright.serve.feedback_checks import CLASS_FIELDS, MAX_ENTRIES, Checked, FeedbackChecks
from edgewright.serve.feedback_intake import FeedbackIntake
from edgewright.serve.feedback_records import Entry, Logged, Outcome
from edgewright.serve.instruments import Instruments
from edgewright.serve.ordered_stream import OrderedStream
from edgewright.v1 import feedback_pb2
from edgewright.v1.feedback_pb2 import (
    Acknowledgement,
    FeedbackEntry,
    SendFeedbackRequest,
    SendFeedbackResponse,
    StreamFeedbackRequest,
    StreamFeedbackResponse,
)
from edgewright.v1.feedback_pb2_grpc import FeedbackServiceServicer

# What of one stream is read ahead of its acknowledgements: enough for large transactions.
MESSAGES_AHEAD: Final = 128
_STATUSES: Final = {
    Outcome.STORED: feedback_pb2.ACK_STATUS_STORED,
    Outcome.DUPLICATE: feedback_pb2.ACK_STATUS_DUPLICATE,
    Outcome.UNMATCHED: feedback_pb2.ACK_STATUS_UNMATCHED,
}
_UNMATCHED_NOTE: Final = "kept, but no prediction of this id has been logged so far"


class FeedbackService(FeedbackServiceServicer):
    """Checks entries, has them stored, and words the acknowledgements.

    Without an intake, as on a server started without --feedback, every call is refused.
    """

    def __init__(
        self, intake: FeedbackIntake | None, instruments: Instruments, observer: CallObserver
    ) -> None:
        self._intake = intake
        self._instruments = instruments
        self._turn = asyncio.Lock()  # one message in a pass of the loop, so that calls come between
        self._draining = asyncio.Event()
        self._stream = OrderedStream(self._draining, MESSAGES_AHEAD, observer)

    def drain(self) -> None:
        """Read no further messages; streams acknowledge what they have read, and end."""
        self._draining.set()

    async def SendFeedback(  # noqa: N802 -- the name in the .proto
        self, request: SendFeedbackRequest, _context: Any
    ) -> SendFeedbackResponse:
        """Store a few entries; raises what ``rpc_errors`` maps to a status."""
        entries = list(request.entries)
        acknowledgements = await self._store(entries, wait_for_room=False)
        return SendFeedbackResponse(acknowledgements=acknowledgements)

    async def StreamFeedback(  # noqa: N802 -- the name in the .proto
        self, requests: AsyncIterator[StreamFeedbackRequest], _context: Any
    ) -> AsyncIterator[StreamFeedbackResponse]:
        """Store what comes, message by message; what ``SendFeedback`` raises ends the stream."""
        self._required_intake()
        async with aclosing(self._stream.answers(requests, self._acknowledge)) as answers:
            async for response in answers:
                yield response

    async def _acknowledge(self, request: StreamFeedbackRequest) -> StreamFeedbackResponse:
        acknowledgements = await self._store(list(request.entries), wait_for_room=True)
        return StreamFeedbackResponse(acknowledgements=acknowledgements)

    async def _store(
        self, messages: Sequence[FeedbackEntry], *, wait_for_room: bool
    ) -> list[Acknowledgement]:
        intake = self._required_intake()
        if (call := current_call.get()) is not None:
            call.rows = len(messages)
        if len(messages) > MAX_ENTRIES:
            raise InputError(
                f"entries has {len(messages)} entries and at most {MAX_ENTRIES} are taken; "
                "spread them over several messages",
                field="entries",
            )
        checked = await self._checked(intake, messages)
        entries = [each.entry for each in checked if isinstance(each, Checked)]
        outcomes: list[Outcome] = []
        if entries:
            outcomes = await intake.writer.submit(entries, wait_for_room=wait_for_room)
        async with self._turn:
            self._count(outcomes, refused=len(checked) - len(entries))
            stored = iter(outcomes)
            acknowledgements = [
                _acknowledged(each.entry, next(stored), each.note)
                if isinstance(each, Checked)
                else _refused(message, each)
                for message, each in zip(messages, checked, strict=True)
            ]
            await asyncio.sleep(0)
        return acknowledgements

    async def _checked(
        self, intake: FeedbackIntake, messages: Sequence[FeedbackEntry]
    ) -> list[Checked | InputError]:
        """Each to be stored, or what is wrong with it."""
        async with self._turn:
            checked = [_checked(intake.checks, message) for message in messages]
            await asyncio.sleep(0)
        pairs = zip(messages, checked, strict=True)
        doubtful = {
            message.prediction_id
            for message, each in pairs
            if isinstance(each, InputError) and each.field in CLASS_FIELDS
        }
        if doubtful := doubtful - {""}:
            logged = await intake.writer.logged(sorted(doubtful))
            async with self._turn:  # all of them, for the times of receipt are in their order
                checked = [
                    _checked(intake.checks, message, logged.get(message.prediction_id))
                    for message in messages
                ]
        return checked

    def _count(self, outcomes: Sequence[Outcome], refused: int) -> None:
        counts = Counter(each.value for each in outcomes)
        counts["invalid"] = refused
        for status, count in counts.items():
            if count:
                self._instruments.feedback_entries.labels(status).inc(count)

    def _required_intake(self) -> FeedbackIntake:
        if self._intake is None:
            raise BackendUnavailableError(
                "this server keeps no feedback; start it with --feedback sqlite:///PATH "
                "or --feedback postgresql://..."
            )
        return self._intake


def _acknowledged(entry: Entry, outcome: Outcome, note: str) -> Acknowledgement:
    unmatched = _UNMATCHED_NOTE if outcome is Outcome.UNMATCHED else ""
    return Acknowledgement(
        entry_id=entry.entry_id,
        status=_STATUSES[outcome],
        message="; ".join(filter(None, (unmatched, note))),
    )


def _refused(message: FeedbackEntry, error: InputError) -> Acknowledgement:
    return Acknowledgement(
        entry_id=message.entry_id[:1000],  # an id of megabytes need not travel back
        status=feedback_pb2.ACK_STATUS_INVALID,
        message=str(error),
    )


def _checked(
    checks: FeedbackChecks, message: FeedbackEntry, logged: Logged | None = None
) -> Checked | InputError:
    try:
        return checks.check(message, logged)
    except InputError as error:
        return error
