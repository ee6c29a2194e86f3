"""edgewright.v1.FeedbackService: entries in, one acknowledgement for each once it is durable."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from edgewright.errors import BackendUnavailableError, InputError, NotReadyError
from edgewright.serve.feedback_checks import MAX_ENTRIES, Checked, FeedbackChecks
from edgewright.serve.feedback_intake import FeedbackIntake
from edgewright.serve.feedback_records import Entry, Outcome
from edgewright.serve.instruments import Instruments
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

# What of one stream is read ahead of its acknowledgements: enough for large transactions, and
# never more memory than this and one message.
MESSAGES_AHEAD: Final = 128
BYTES_AHEAD: Final = 4 << 20
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

    def __init__(self, intake: FeedbackIntake | None, instruments: Instruments) -> None:
        self._intake = intake
        self._instruments = instruments
        self._draining = asyncio.Event()

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
        work: deque[asyncio.Task[list[Acknowledgement]]] = deque()  # in the order of the messages
        sizes: deque[int] = deque()  # theirs, in bytes
        draining = asyncio.ensure_future(self._draining.wait())
        reading: asyncio.Future[StreamFeedbackRequest | None] | None = _next_of(requests)
        try:
            while reading or work:
                if reading and draining.done():
                    reading.cancel()
                    reading = None
                elif reading and reading.done() and _has_room(sizes):
                    if (request := reading.result()) is None:
                        reading = None
                        continue
                    entries = list(request.entries)
                    work.append(asyncio.create_task(self._store(entries, wait_for_room=True)))
                    sizes.append(request.ByteSize())
                    reading = _next_of(requests)
                elif work and work[0].done():
                    sizes.popleft()
                    yield StreamFeedbackResponse(acknowledgements=work.popleft().result())
                else:
                    heard = [reading] if reading and _has_room(sizes) else []
                    waits: set[asyncio.Future[Any]] = {*heard, *list(work)[:1]}
                    if reading:
                        waits.add(draining)
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                raise NotReadyError("the server is shutting down; go on with another replica")
        finally:
            for each in (draining, reading, *work):
                if each is not None:
                    each.cancel()

    async def _store(
        self, messages: Sequence[FeedbackEntry], *, wait_for_room: bool
    ) -> list[Acknowledgement]:
        intake = self._required_intake()
        if len(messages) > MAX_ENTRIES:
            raise InputError(
                f"entries has {len(messages)} entries and at most {MAX_ENTRIES} are taken; "
                "spread them over several messages",
                field="entries",
            )
        checked = [_checked(intake.checks, message) for message in messages]
        entries = [each.entry for each in checked if isinstance(each, Checked)]
        outcomes: list[Outcome] = []
        if entries:
            outcomes = await intake.writer.submit(entries, wait_for_room=wait_for_room)
        stored = iter(outcomes)
        return [
            self._acknowledged(each.entry, next(stored), each.note)
            if isinstance(each, Checked)
            else self._refused(message, each)
            for message, each in zip(messages, checked, strict=True)
        ]

    def _required_intake(self) -> FeedbackIntake:
        if self._intake is None:
            raise BackendUnavailableError(
                "this server keeps no feedback; start it with --feedback sqlite:///PATH "
                "or --feedback postgresql://..."
            )
        return self._intake

    def _acknowledged(self, entry: Entry, outcome: Outcome, note: str) -> Acknowledgement:
        self._instruments.feedback_entries.labels(outcome.value).inc()
        unmatched = _UNMATCHED_NOTE if outcome is Outcome.UNMATCHED else ""
        return Acknowledgement(
            entry_id=entry.entry_id,
            status=_STATUSES[outcome],
            message="; ".join(filter(None, (unmatched, note))),
        )

    def _refused(self, message: FeedbackEntry, error: InputError) -> Acknowledgement:
        self._instruments.feedback_entries.labels("invalid").inc()
        return Acknowledgement(
            entry_id=message.entry_id[:1000],  # an id of megabytes need not travel back
            status=feedback_pb2.ACK_STATUS_INVALID,
            message=str(error),
        )


def _checked(checks: FeedbackChecks, message: FeedbackEntry) -> Checked | InputError:
    try:
        return checks.check(message)
    except InputError as error:
        return error


def _has_room(sizes: Sequence[int]) -> bool:
    return len(sizes) < MESSAGES_AHEAD and sum(sizes) < BYTES_AHEAD


def _next_of(
    requests: AsyncIterator[StreamFeedbackRequest],
) -> asyncio.Future[StreamFeedbackRequest | None]:
    """The next message; None after the last."""
    return asyncio.ensure_future(anext(requests, None))
