"""A stream, of feedback here, that outlives its connections, step by step and without a network."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from itertools import count, islice
from typing import Any

import grpc
import pytest
from both_clients import Clock

from edgewright.calls import Calls, Pause
from edgewright.errors import (
    DeadlineError,
    FeedbackStoreError,
    InputError,
    NotReadyError,
    ServiceError,
)
from edgewright.feedback import (
    Acknowledgement,
    AckStatus,
    Feedback,
    FeedbackForm,
    entry_message,
    feedback_chunks,
    matched,
)
from edgewright.resumed_stream import (
    MESSAGES_AHEAD,
    Close,
    Deliver,
    Open,
    Read,
    ResumedStream,
    Take,
    Taken,
    Write,
)
from edgewright.rpc_errors import STATUS_METADATA_KEY, to_status
from edgewright.stream_calls import AsyncStreamCall, StreamCall
from edgewright.v1 import feedback_pb2


class Failure(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """A call that failed, as gRPC tells it."""

    def __init__(
        self, code: grpc.StatusCode, error: Exception | None = None, details: str = "failed"
    ) -> None:
        self._code, self._details = code, details
        self._trailers = (
            () if error is None else ((STATUS_METADATA_KEY, to_status(error).SerializeToString()),)
        )

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailers


class Server:
    """Performs the steps as a server would that keeps ids; ``faults`` come up at the next reads."""

    def __init__(self, clock: Clock, entries: Iterable[Feedback]) -> None:
        self.clock = clock
        self.entries = iter(entries)
        self.stored: dict[str, int] = {}  # id -> times received
        self.faults: list[Exception | None] = []
        self.log: list[str] = []
        self.pauses: list[float] = []
        self._deadline = 0.0  # of the call that is open
        self._unread: list[Any] = []  # responses

    def run(self, stream: ResumedStream) -> list[Acknowledgement]:
        told: list[Acknowledgement] = []
        steps = stream.steps()
        answer: Any = None
        try:
            step = next(steps)
            while True:
                try:
                    answer = self.perform(step, told)
                except grpc.RpcError as failure:
                    step = steps.throw(failure)
                else:
                    step = steps.send(answer)
        except StopIteration:
            return told

    def perform(self, step: Any, told: list[Acknowledgement]) -> Any:
        self.log.append(type(step).__name__)
        match step:
            case Take(count, within_s):
                return self._take(count, self.clock.now + within_s)
            case Open(timeout_s):
                self._unread.clear()
                self._deadline = self.clock.now + timeout_s
            case Write(request):
                self._unread.append(self._stored(request.entries))
            case Read():
                if self.faults and (fault := self.faults.pop(0)) is not None:
                    raise fault
                self._check_deadline()
                return self._read()
            case Pause(seconds):
                self.pauses.append(seconds)
                self.clock.now += seconds
            case Deliver(answers):
                told.extend(answers)
            case Close():
                assert self._unread == []
                self._check_deadline()
        return None

    def _take(self, count: int, until: float) -> Taken:
        taken = []
        for entry in islice(self.entries, count):
            taken.append(entry)
            if self.clock.now >= until:
                return Taken(taken, exhausted=False)
        return Taken(taken, exhausted=len(taken) < count)

    def _check_deadline(self) -> None:
        """gRPC drops what has arrived of a call that is late, and has not been read."""
        if self.clock.now >= self._deadline:
            raise Failure(grpc.StatusCode.DEADLINE_EXCEEDED)

    def _read(self) -> Any:
        return self._unread.pop(0)

    def _stored(self, entries: Sequence[Any]) -> Any:
        response = feedback_pb2.StreamFeedbackResponse()
        for entry in entries:
            self.stored[entry.entry_id] = self.stored.get(entry.entry_id, 0) + 1
            status = "DUPLICATE" if self.stored[entry.entry_id] > 1 else "STORED"
            response.acknowledgements.add(entry_id=entry.entry_id, status=f"ACK_STATUS_{status}")
        return response


def stream(clock: Clock, patience_s: float = 30) -> ResumedStream:
    return ResumedStream(FeedbackForm(), Calls("host:1", 4, random.Random(0)), patience_s, clock)


def feedback(count: int) -> list[Feedback]:
    return [Feedback("sport", f"p{index}") for index in range(count)]


def test_every_entry_is_acknowledged_once_in_order() -> None:
    sent = feedback(1000)
    server = Server(Clock(), sent)
    told = server.run(stream(server.clock))
    assert [each.entry_id for each in told] == [each.entry_id for each in sent]
    assert all(each.status is AckStatus.STORED and each.durable for each in told)
    assert server.log.count("Write") == 16  # of 64 at most
    assert (server.log.count("Open"), server.log[-1]) == (1, "Close")


def test_no_entries_make_no_call() -> None:
    server = Server(Clock(), [])
    assert server.run(stream(server.clock)) == []
    assert server.log == ["Take"]


def test_what_is_sent_ahead_is_bounded() -> None:
    server = Server(Clock(), feedback(64 * 3 * MESSAGES_AHEAD))
    server.run(stream(server.clock))
    assert server.log[: 2 * MESSAGES_AHEAD + 2].count("Write") == MESSAGES_AHEAD


@pytest.mark.parametrize("at", range(6))
def test_what_was_not_acknowledged_is_sent_again(at: int) -> None:
    sent = feedback(400)
    server = Server(Clock(), sent)
    unavailable = Failure(grpc.StatusCode.UNAVAILABLE)
    server.faults = [None] * at + [unavailable, unavailable, None, unavailable]
    told = server.run(stream(server.clock))
    assert [each.entry_id for each in told] == [each.entry_id for each in sent]
    assert set(server.stored) == {each.entry_id for each in sent}
    assert len(server.pauses) == 3
    assert server.pauses[1] > server.pauses[0]


def test_it_gives_up_when_nothing_was_acknowledged_for_as_long_as_it_was_told() -> None:
    server = Server(Clock(), feedback(10))
    server.faults = [Failure(grpc.StatusCode.UNAVAILABLE)] * 1000
    started = server.clock.now
    with pytest.raises(NotReadyError, match="no gRPC server answers at host:1"):
        server.run(stream(server.clock, patience_s=30))
    assert 25 < server.clock.now - started <= 30


def test_a_server_that_comes_back_is_given_the_whole_time_anew() -> None:
    server = Server(Clock(), feedback(64 * 40))
    for _ in range(30):
        server.faults += [Failure(grpc.StatusCode.UNAVAILABLE)] * 4 + [None]
    assert len(server.run(stream(server.clock, patience_s=5))) == 64 * 40
    assert server.clock.now - 1000 > 15


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, FeedbackStoreError("disk full")),
        (grpc.StatusCode.INVALID_ARGUMENT, InputError("entries")),
    ],
)
def test_what_trying_again_will_not_mend_is_raised(code: Any, error: Exception) -> None:
    server = Server(Clock(), feedback(10))
    server.faults = [Failure(code, error)]
    with pytest.raises(type(error)):
        server.run(stream(server.clock))
    assert server.pauses == []


def test_a_call_whose_end_was_not_seen_is_tried_again() -> None:
    # grpc.aio says INTERNAL, in these words, when a write meets a call that is just ending.
    sent = feedback(5)
    server = Server(Clock(), sent)
    server.faults = [Failure(grpc.StatusCode.INTERNAL, details="Internal error from Core")]
    told = server.run(stream(server.clock))
    assert [each.entry_id for each in told] == [each.entry_id for each in sent]
    assert server.log.count("Open") == 2


def test_a_stream_that_grpc_dropped_unseen_is_begun_again() -> None:
    server = Server(Clock(), feedback(5))
    server.faults = [Failure(grpc.StatusCode.CANCELLED, details="CANCELLED")]
    assert len(server.run(stream(server.clock))) == 5


def test_a_store_that_is_away_for_a_moment_is_waited_for() -> None:
    server = Server(Clock(), feedback(10))
    server.faults = [Failure(grpc.StatusCode.UNAVAILABLE, FeedbackStoreError("away"))]
    assert len(server.run(stream(server.clock))) == 10


def test_a_silent_server_is_told_by_its_deadline() -> None:
    server = Server(Clock(), feedback(10))

    def silent(step: Any, told: Any) -> Any:
        if isinstance(step, Read):
            server.clock.now += 30
            raise Failure(grpc.StatusCode.DEADLINE_EXCEEDED)
        return Server.perform(server, step, told)

    server.perform = silent  # type: ignore[method-assign]
    with pytest.raises(DeadlineError):
        server.run(stream(server.clock, patience_s=30))


def test_a_long_stream_changes_its_connection_without_sending_twice() -> None:
    sent = feedback(64 * 100)
    server = Server(Clock(), sent)
    plain = server.perform

    def slow(step: Any, told: Any) -> Any:
        server.clock.now += 1
        return plain(step, told)

    server.perform = slow  # type: ignore[method-assign]
    told = server.run(stream(server.clock, patience_s=60))
    assert [each.entry_id for each in told] == [each.entry_id for each in sent]
    assert set(server.stored.values()) == {1}
    assert server.log.count("Open") == server.log.count("Close") > 5


@pytest.mark.parametrize("pause_s", [2, 10, 29, 60, 3600])
def test_a_caller_with_long_pauses_is_answered_each_time(pause_s: float) -> None:
    clock = Clock()
    asked = count(1)

    def slowly() -> Iterator[Feedback]:
        for entry in feedback(130):
            clock.now += pause_s
            assert server.log.count("Deliver") == next(asked) - 1  # all that was given before
            yield entry

    server = Server(clock, slowly())
    told = server.run(stream(clock, patience_s=30))
    assert [each.status for each in told] == [AckStatus.STORED] * 130
    assert server.pauses == []


def test_a_caller_who_pauses_with_messages_under_way_has_them_sent_again() -> None:
    clock = Clock()

    def in_bursts() -> Iterator[Feedback]:
        for index, entry in enumerate(feedback(400)):
            if index % 150 == 149:
                clock.now += 600
            yield entry

    server = Server(clock, in_bursts())
    assert [each.durable for each in server.run(stream(clock, patience_s=30))] == [True] * 400
    assert max(server.stored.values()) == 2


def test_a_caller_who_looks_at_answers_for_long_is_not_late() -> None:
    clock = Clock()
    server = Server(clock, feedback(64 * 30))
    plain = server.perform

    def slow(step: Any, told: Any) -> Any:
        if isinstance(step, Deliver):
            clock.now += 100
        return plain(step, told)

    server.perform = slow  # type: ignore[method-assign]
    told = server.run(stream(clock, patience_s=30))
    assert len(told) == 64 * 30
    again = [each for each in told if each.status is AckStatus.DUPLICATE]
    assert len(again) <= 64 * (MESSAGES_AHEAD - 1)  # those under way at the first, and no more


def test_a_silent_server_is_not_excused_by_a_slow_caller() -> None:
    clock = Clock()

    def slowly() -> Iterator[Feedback]:
        for entry in feedback(100):
            clock.now += 45
            yield entry

    server = Server(clock, slowly())

    def silent() -> Any:
        clock.now = server._deadline
        server._check_deadline()

    server._read = silent  # type: ignore[method-assign]
    with pytest.raises(DeadlineError):
        server.run(stream(clock, patience_s=30))
    assert clock.now == 1000 + 45 + 30


def test_slow_is_less_than_what_the_deadline_leaves_to_read() -> None:
    clock = Clock()

    def steadily() -> Iterator[Feedback]:
        for index, entry in enumerate(feedback(64 * 40)):
            clock.now += 0.35 if index % 64 == 0 else 0
            yield entry

    server = Server(clock, steadily())
    assert {each.status for each in server.run(stream(clock, patience_s=0.3))} == {AckStatus.STORED}


def test_an_error_of_the_entries_own_call_is_not_the_streams() -> None:
    def broken() -> Iterator[Feedback]:
        yield from feedback(3)
        raise Failure(grpc.StatusCode.UNAVAILABLE)

    async def run() -> None:
        call = AsyncStreamCall(lambda: None, broken(), nullcontext, asyncio.sleep, clock)
        async for _ in call.answers(stream(clock).steps()):
            pass

    clock = Clock()
    with pytest.raises(Failure):
        call = StreamCall(None, broken(), nullcontext, clock.sleep, clock)
        list(call.answers(stream(clock).steps()))
    with pytest.raises(Failure):
        asyncio.run(run())


def test_a_server_that_hangs_up_is_an_error() -> None:
    server = Server(Clock(), feedback(10))
    server._read = lambda: None  # type: ignore[method-assign]
    with pytest.raises(ServiceError, match="ended the stream without answering"):
        server.run(stream(server.clock))


def test_acknowledgements_of_others_are_refused() -> None:
    answers = [feedback_pb2.Acknowledgement(entry_id="a")]
    assert matched(answers, [Feedback("x", entry_id="a")], "host:1")[0].status == "UNSPECIFIED"
    for entries in ([], [Feedback("x", entry_id="b")]):
        with pytest.raises(ServiceError, match="do not fit together"):
            matched(answers, entries, "host:1")


def test_a_large_entry_goes_alone() -> None:
    entries = [Feedback("x", text="y" * size) for size in (10, 200_000, 200_000, 900_000, 10)]
    assert [len(chunk) for chunk in feedback_chunks(entries)] == [2, 1, 1, 1]


def test_an_entry_that_no_message_can_hold_is_refused() -> None:
    for entry in (
        Feedback("\ud800"),
        Feedback("x", entry_id=""),
        Feedback("x", created=datetime(2026, 1, 1)),
        Feedback(3),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError):
            entry_message(entry)
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert entry_message(Feedback("x", created=moment)).create_time_us == 1_767_225_600_000_000
