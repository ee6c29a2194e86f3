"""Which feedback entries may be stored; what is wrong with the others, in words."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from edgewright.errors import InputError, ModelNotFoundError, NotReadyError
from edgewright.serve.feedback_records import Entry, Logged
from edgewright.serve.registry import Registry, State
from edgewright.v1.feedback_pb2 import FeedbackEntry

MAX_ENTRIES: Final = 1000  # in one message
MAX_ID_CHARS: Final = 128
MAX_LABEL_CHARS: Final = 256
MAX_NOTE_BYTES: Final = 4096
# Wrong by the models that are served, they may be right by the one whose prediction it is about.
CLASS_FIELDS: Final = ("label", "model")
FUTURE_NOTE: Final = "create_time_us lies in the future; the time of receipt was recorded"


@dataclass(frozen=True)
class Checked:
    """An entry that may be stored, and what its sender should know of it."""

    entry: Entry
    note: str = ""


class FeedbackChecks:
    """Checks entries against the limits and the models that are served."""

    def __init__(
        self,
        registry: Registry,
        *,
        max_text_chars: int,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._registry = registry
        self._max_text_chars = max_text_chars
        self._clock_ns = clock_ns
        self._last_us = 0

    def check(self, message: FeedbackEntry, logged: Logged | None = None) -> Checked:
        """The entry to store; received times ascend, so that the last entry is known as such.

        ``logged`` is the prediction that it is about: its model may not be served any more.

        Raises:
            InputError: it cannot be stored; names the field, one of ``CLASS_FIELDS`` where no model
                that could be meant has the label.
            NotReadyError: the models, and so their labels, are not known yet.
        """
        if self._registry.state is State.LOADING:
            raise NotReadyError("the models are still being loaded; try again in a moment")
        _check_id("entry_id", message.entry_id, needed=True)
        _check_id("prediction_id", message.prediction_id, needed=not message.text)
        _check_string("label", message.label, MAX_LABEL_CHARS)
        if not message.label.strip():
            raise InputError("label is empty; give the right class", field="label")
        self._check_text(message.text)
        _check_note(message.note)
        model = self._checked_model(message, logged)
        received_us = self._last_us = max(self._clock_ns() // 1000, self._last_us + 1)
        created_us = message.create_time_us
        if created_us < 0:
            raise InputError(
                f"create_time_us is {created_us}; microseconds since 1970 are expected",
                field="create_time_us",
            )
        entry = Entry(
            entry_id=message.entry_id,
            prediction_id=message.prediction_id or None,
            label=message.label.strip(),
            text=message.text or None,
            note=message.note or None,
            model=model,
            created_us=min(created_us or received_us, received_us),
            received_us=received_us,
        )
        return Checked(entry, FUTURE_NOTE if created_us > received_us else "")

    def _check_text(self, text: str) -> None:
        if text and text.isspace():
            raise InputError("text is blank; leave it out", field="text")
        _check_string("text", text, self._max_text_chars)

    def _checked_model(self, message: FeedbackEntry, logged: Logged | None) -> str | None:
        """The model that the entry is about, where that can be told; it has the label."""
        try:
            return self._served_model(message)
        except InputError:
            if logged and (message.new_label or message.label.strip() in logged.labels):
                return logged.model
            raise

    def _served_model(self, message: FeedbackEntry) -> str | None:
        names = self._registry.names()
        if message.model:
            names = [message.model]
        label = message.label.strip()
        labels = [self._labels(name) for name in names]
        if not message.new_label and not any(label in each for each in labels):
            known = {each for several in labels for each in several}
            served = ", ".join(names) or "a model that is served"
            raise InputError(
                f"label {label[:60]!r} is none of {served}; it knows: "
                f"{_listed(sorted(known))}. Set new_label where it is meant to be a new class",
                field="label",
            )
        return names[0] if len(names) == 1 else None

    def _labels(self, name: str) -> Sequence[str]:
        try:
            return self._registry.ready(name).labels
        except ModelNotFoundError as error:
            raise InputError(str(error), field="model") from error


def _check_id(field: str, value: str, *, needed: bool) -> None:
    if needed and not value.strip():
        also = ", or the text itself" if field == "prediction_id" else ", unique for all time"
        raise InputError(f"{field} is empty; give it{also}", field=field)
    _check_string(field, value, MAX_ID_CHARS)


def _check_string(field: str, value: str, most: int) -> None:
    if len(value) > most:
        raise InputError(
            f"{field} has {len(value)} characters and at most {most} are taken", field=field
        )
    if "\0" in value:  # which PostgreSQL cannot hold
        raise InputError(f"{field} holds the character U+0000; leave it out", field=field)


def _check_note(note: str) -> None:
    size = len(note.encode())
    if size > MAX_NOTE_BYTES:
        raise InputError(
            f"note has {size} bytes and at most {MAX_NOTE_BYTES} are taken; shorten it",
            field="note",
        )
    _check_string("note", note, MAX_NOTE_BYTES)


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
    return ", ".join(labels[:20]) + more
