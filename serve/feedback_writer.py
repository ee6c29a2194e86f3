"""The one thread that writes: feedback first, and predictions for the log in between.

What has gathered within 10 ms is committed in one transaction, and its callers hear of it after the
commit. When the store cannot write, they hear that, and the next transaction tries anew.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from edgewright.errors import FeedbackStoreError, OverloadedError
from edgewright.serve.feedback_records import Entry, Logged, Outcome, Prediction
from edgewright.serve.prediction_log import PredictionLog
from edgewright.serve.shutting_down import shutting_down

GATHER_S: Final = 0.01  # from the first entry that waits to its transaction
ENOUGH_ENTRIES: Final = 256  # that are worth a transaction at once
QUEUE_BYTES: Final = 64 << 20
PREDICTIONS_S: Final = 0.2  # between two looks at the log
PREDICTIONS_AT_ONCE: Final = 512  # an entry waits for one such transaction at most
PREDICTION_BYTES_AT_ONCE: Final = 4 << 20  # which with images is fewer of them
RETRY_S: Final = 1.0  # between two tries to write the log into a store that fails
# Outages are apart: on a disk that is nearly full an entry may still fit where an image does not.
_REFUSED: Final = "feedback was refused"
_NOT_LOGGED: Final = "predictions were not logged"

log = logging.getLogger(__name__)


class Store(Protocol):
    """What the thread needs of ``FeedbackStore``."""

    def add_feedback(self, entries: Sequence[Entry]) -> list[Outcome]:
        """Make entries durable; FeedbackStoreError where that cannot be promised."""
        ...

    def add_predictions(self, logged: Sequence[Prediction]) -> None:
        """Make predictions durable; FeedbackStoreError where that cannot be promised."""
        ...

    def logged(self, prediction_ids: Sequence[str]) -> dict[str, Logged]:
        """What is known of those that are durable; on another thread than the rest."""
        ...

    def close(self) -> None:
        """Let go of the database."""
        ...


class WriteObserver(Protocol):
    """Is told of what was written, on the writing thread."""

    def feedback_committed(self, entries: int, seconds: float) -> None:
        """One transaction of entries is durable."""
        ...

    def feedback_failed(self, entries: int) -> None:
        """One transaction of entries was refused by the store."""
        ...

    def predictions_logged(self, count: int) -> None:
        """These are durable."""
        ...


@dataclass(eq=False)
class _Submission:
    """One caller's entries."""

    entries: Sequence[Entry]
    size: int  # bytes, roughly
    future: asyncio.Future[list[Outcome]]
    outcome: list[Outcome] | FeedbackStoreError | None = None


class FeedbackWriter:
    """The queue and its thread. Everything public belongs to the event loop's thread."""

    def __init__(
        self,
        store: Store,
        predictions: PredictionLog,
        observer: WriteObserver,
        *,
        queue_bytes: int = QUEUE_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._predictions = predictions
        self._observer = observer
        self._queue_bytes = queue_bytes
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._bytes = 0  # of entries between ``submit`` and their outcome
        self._room = asyncio.Event()
        self._reading = asyncio.Lock()  # one connection beside the thread's own
        self._changed = threading.Condition()  # guards the next four
        self._submissions: deque[_Submission] = deque()
        self._entries = 0  # of the submissions that wait
        self._due = float("inf")  # when the submissions that wait are committed
        self._closing = False
        self._outages = set[str]()  # the thread's, as is the next
        self._predictions_due = clock() + PREDICTIONS_S
        self._thread = threading.Thread(target=self._work, name="feedback", daemon=True)
        self._thread.start()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of entries that are not durable yet, roughly."""
        return self._bytes

    async def submit(self, entries: Sequence[Entry], *, wait_for_room: bool) -> list[Outcome]:
        """Make ``entries`` durable; what became of each, in their order.

        Raises:
            OverloadedError: the queue is full, and the caller would not wait.
            FeedbackStoreError: the store did not promise to keep them; send them again later.
            NotReadyError: the writer is closed.
        """
        size = sum(entry.size for entry in entries)
        await self._enter(size, wait_for_room)
        submission = _Submission(entries, size, self._loop.create_future())
        with self._changed:
            self._submissions.append(submission)
            self._entries += len(entries)
            now = self._clock()
            due = now if self._entries >= ENOUGH_ENTRIES else now + GATHER_S
            if due < self._due:
                self._due = due
                self._changed.notify()
        return await submission.future

    async def logged(self, prediction_ids: Sequence[str]) -> dict[str, Logged]:
        """Those of these predictions that are logged, or about to be, by id.

        Raises:
            FeedbackStoreError: the store failed.
            NotReadyError: the writer is closed.
        """
        waiting = filter(None, map(self._predictions.get, prediction_ids))
        found = {each.prediction_id: Logged(each.model, each.labels) for each in waiting}
        others = [each for each in prediction_ids if each not in found]
        async with self._reading:
            self._refuse_once_closed()
            return found | await asyncio.to_thread(self._store.logged, others)

    async def close(self) -> None:
        """Write what waits, as far as the store lets it, and end the thread."""
        async with self._reading:
            with self._changed:
                self._closing = True
                self._changed.notify()
            self._room.set()
            await asyncio.to_thread(self._thread.join)

    async def _enter(self, size: int, wait_for_room: bool) -> None:
        while not self._closing and self._bytes and self._bytes + size > self._queue_bytes:
            if not wait_for_room:
                raise OverloadedError(
                    "more feedback waits to be stored than may; try again in a moment, "
                    "or ask another replica",
                    retry_after_s=RETRY_S,
                )
            self._room.clear()
            await self._room.wait()
        self._refuse_once_closed()
        self._bytes += size

    def _refuse_once_closed(self) -> None:
        if self._closing:
            raise shutting_down("send the feedback to another replica")

    def _work(self) -> None:
        while True:
            submissions, closing = self._next()
            if submissions:
                self._commit(submissions)
            if closing or self._clock() >= self._predictions_due:
                self._log_predictions()
            if closing and not submissions:
                break
        while len(self._predictions) and _NOT_LOGGED not in self._outages:
            self._log_predictions()
        if len(self._predictions):
            log.warning("%d predictions that waited for the store are lost", len(self._predictions))
        self._store.close()

    def _next(self) -> tuple[list[_Submission], bool]:
        """Wait until something is due; the submissions to commit, and whether it is the end."""
        with self._changed:
            while not self._closing:
                due = min(self._due, self._predictions_due)
                left_s = due - self._clock()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            taken: list[_Submission] = []
            if self._closing or self._clock() >= self._due:
                taken = list(self._submissions)
                self._submissions.clear()
                self._entries = 0
                self._due = float("inf")
            return taken, self._closing

    def _commit(self, submissions: Sequence[_Submission]) -> None:
        entries = [entry for each in submissions for entry in each.entries]
        started = self._clock()
        try:
            outcomes = self._store.add_feedback(entries)
        except BaseException as error:  # an edge: the thread outlives whatever a driver does
            failure = self._failed(_REFUSED, error)
            self._observer.feedback_failed(len(entries))
            for each in submissions:
                each.outcome = failure
        else:
            self._recovered(_REFUSED)
            self._observer.feedback_committed(len(entries), self._clock() - started)
            start = 0
            for each in submissions:
                end = start + len(each.entries)
                each.outcome = self._matched(each.entries, outcomes[start:end])
                start = end
        self._loop.call_soon_threadsafe(self._settle, submissions)

    def _matched(self, entries: Sequence[Entry], outcomes: Sequence[Outcome]) -> list[Outcome]:
        """A prediction that is about to be logged is not unknown."""
        return [
            Outcome.STORED
            if outcome is Outcome.UNMATCHED and self._predictions.holds(entry.prediction_id)
            else outcome
            for entry, outcome in zip(entries, outcomes, strict=True)
        ]

    def _log_predictions(self) -> None:
        rows = self._predictions.first(PREDICTIONS_AT_ONCE, PREDICTION_BYTES_AT_ONCE)
        more = len(rows) < len(self._predictions)
        pause = 0.0 if more else PREDICTIONS_S
        if rows:
            try:
                self._store.add_predictions(rows)
            except BaseException as error:  # an edge, as above
                self._failed(_NOT_LOGGED, error)
                pause = RETRY_S
            else:
                self._recovered(_NOT_LOGGED)
                self._predictions.remove(rows)
                self._observer.predictions_logged(len(rows))
        self._predictions_due = self._clock() + pause

    def _failed(self, what: str, error: BaseException) -> FeedbackStoreError:
        """What the callers are told; the log hears of an outage once."""
        if isinstance(error, FeedbackStoreError):
            failure = error
        else:
            failure = FeedbackStoreError("the feedback store failed; the server's log says how")
            log.error("the feedback store failed", exc_info=error)
        if what not in self._outages:
            log.warning("%s, calls are answered all the same: %s", what, error)
            self._outages.add(what)
        return failure

    def _recovered(self, what: str) -> None:
        if what in self._outages:
            log.warning("the store writes again, after a time in which %s", what)
            self._outages.remove(what)

    def _settle(self, submissions: Sequence[_Submission]) -> None:
        for each in submissions:
            self._bytes -= each.size
            if each.future.done():
                continue  # its caller has left
            if isinstance(each.outcome, FeedbackStoreError):
                each.future.set_exception(each.outcome)
            elif each.outcome is not None:
                each.future.set_result(each.outcome)
        self._room.set()
