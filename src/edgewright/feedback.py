"""Feedback as a client sends it, and what the server says of it, without protobuf in sight."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from edgewright.errors import InputError, ServiceError
from edgewright.v1 import feedback_pb2

# One message's share of a long list: small beside gRPC's 4 MiB and a server's limit.
MAX_ENTRIES: Final = 64
MAX_BYTES: Final = 1 << 20


def _new_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True)
class Feedback:
    """The right class of one prediction, or of a text.

    Of several entries about one prediction the last one received counts. ``entry_id`` must be
    unique for all time; the same id sent again is a duplicate, whatever else it says.
    """

    label: str
    prediction_id: str = ""
    text: str = ""  # what was classified, where the server does not log it
    note: str = ""  # for people; 4096 bytes at most
    model: str = ""  # may be left out when the server holds just one
    new_label: bool = False  # the label may be a class that the model does not have yet
    created: datetime | None = None  # with a time zone; None is now
    entry_id: str = field(default_factory=_new_id)


class AckStatus(StrEnum):
    """What became of an entry."""

    UNSPECIFIED = "UNSPECIFIED"  # by a server newer than this client
    STORED = "STORED"
    DUPLICATE = "DUPLICATE"  # an entry of this id is stored already
    UNMATCHED = "UNMATCHED"  # stored; no prediction of that id has been logged so far
    INVALID = "INVALID"  # not stored; sending it again will not help


@dataclass(frozen=True)
class Acknowledgement:
    """What became of one entry; ``message`` says what is wrong with it, if anything."""

    entry_id: str
    status: AckStatus
    message: str

    @property
    def durable(self) -> bool:
        """Whether an entry of this id survives whatever happens to the server."""
        return self.status in (AckStatus.STORED, AckStatus.DUPLICATE, AckStatus.UNMATCHED)


def entry_message(entry: Feedback) -> feedback_pb2.FeedbackEntry:
    """The message of an entry.

    Raises:
        InputError: it holds what no message can: half of a surrogate pair, or a time without zone.
    """
    if not entry.entry_id:
        raise InputError("entry_id is empty; leave it out for a new one", field="entry_id")
    if entry.created is not None and entry.created.tzinfo is None:
        raise InputError(f"created {entry.created} has no time zone; give it one", field="created")
    try:
        return feedback_pb2.FeedbackEntry(
            entry_id=entry.entry_id,
            prediction_id=entry.prediction_id,
            label=entry.label,
            new_label=entry.new_label,
            text=entry.text,
            note=entry.note,
            model=entry.model,
            create_time_us=0 if entry.created is None else round(entry.created.timestamp() * 1e6),
        )
    except (TypeError, UnicodeEncodeError, ValueError) as error:
        raise InputError(f"feedback {entry.entry_id!r} cannot be sent: {error}") from error


class FeedbackForm:
    """The messages of StreamFeedback."""

    def chunks(self, entries: Sequence[Feedback]) -> Iterator[list[Feedback]]:
        """As ``feedback_chunks``."""
        return feedback_chunks(entries)

    def request(self, chunk: Sequence[Feedback]) -> feedback_pb2.StreamFeedbackRequest:
        """The message of these entries; raises as ``entry_message``."""
        return feedback_pb2.StreamFeedbackRequest(entries=map(entry_message, chunk))

    def answers(
        self, response: Any, chunk: Sequence[Feedback], target: str
    ) -> list[Acknowledgement]:
        """Their acknowledgements; raises as ``matched``."""
        return matched(response.acknowledgements, chunk, target)


def matched(
    messages: Sequence[Any], entries: Sequence[Feedback], target: str
) -> list[Acknowledgement]:
    """The acknowledgements of ``entries``, in their order.

    Raises:
        ServiceError: they are not those of these entries.
    """
    answers = [
        Acknowledgement(each.entry_id, _status(each.status), each.message) for each in messages
    ]
    given, asked = [a.entry_id for a in answers], [e.entry_id[:1000] for e in entries]
    if given != asked:
        raise ServiceError(
            f"{target} acknowledged {len(given)} entries, and they are not the {len(asked)} that "
            "were sent; the server and this client do not fit together"
        )
    return answers


def feedback_chunks(entries: Sequence[Feedback]) -> Iterator[list[Feedback]]:
    """Runs of at most MAX_ENTRIES entries and MAX_BYTES; a larger entry goes alone."""
    chunk: list[Feedback] = []
    size = 0
    for entry in entries:
        size_of_entry = 4 * (len(entry.text) + len(entry.note))  # bytes, at most
        if chunk and (len(chunk) == MAX_ENTRIES or size + size_of_entry > MAX_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(entry)
        size += size_of_entry
    if chunk:
        yield chunk


def _status(value: int) -> AckStatus:
    known = feedback_pb2.AckStatus.DESCRIPTOR.values_by_number
    return AckStatus(str(known.get(value, known[0]).name).removeprefix("ACK_STATUS_"))
