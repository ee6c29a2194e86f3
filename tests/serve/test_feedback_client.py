"""Both clients against a real server: feedback sent, streamed, refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgewright.client import Acknowledgement, AckStatus, AsyncClient, Client, Feedback
from edgewright.errors import BackendUnavailableError, EdgewrightError, ServiceError

from .conftest import Launch, until


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'feedback.db'}"


def target(launch: Launch, **options: str) -> str:
    return f"127.0.0.1:{launch(**options).server.port}"


def test_what_is_classified_gets_its_feedback(launch: Launch, url: str) -> None:
    with Client(target(launch, feedback=url)) as client:
        answers = client.classify(["team wins", "bank shares"])
        entries = [Feedback("sport", answer.prediction_id) for answer in answers]
        told = client.send_feedback(entries)
        assert [each.status for each in told] == [AckStatus.STORED] * 2
        assert [each.entry_id for each in told] == [each.entry_id for each in entries]
        (again,) = client.send_feedback(entries[0])
        assert again == Acknowledgement(entries[0].entry_id, AckStatus.DUPLICATE, "")
        (bad,) = client.send_feedback(Feedback("tennis", "p"))
        assert (bad.status, bad.durable) == (AckStatus.INVALID, False)
        assert client.send_feedback([]) == []


def test_a_stream_is_acknowledged_as_it_goes(launch: Launch, url: str) -> None:
    entries = [Feedback("sport", f"p{index}") for index in range(700)]
    with Client(target(launch, feedback=url)) as client:
        told = list(client.stream_feedback(entries))
        assert [each.entry_id for each in told] == [each.entry_id for each in entries]
        first = next(client.stream_feedback(entries))  # left after the first
        assert first.status is AckStatus.DUPLICATE
        assert list(client.stream_feedback([])) == []


def test_the_callers_own_error_reaches_the_caller(launch: Launch, url: str) -> None:
    def broken() -> Iterator[Feedback]:
        yield Feedback("sport", "p")
        raise ZeroDivisionError

    with Client(target(launch, feedback=url)) as client:
        with pytest.raises(ZeroDivisionError):
            list(client.stream_feedback(broken()))
        assert len(client.send_feedback(Feedback("sport", "p"))) == 1


def test_the_asynchronous_client_does_the_same(launch: Launch, url: str) -> None:
    entries = [Feedback("sport", f"p{index}") for index in range(300)]

    async def later() -> AsyncIterator[Feedback]:
        for entry in entries:
            await asyncio.sleep(0)
            yield entry

    async def run(where: str) -> None:
        async with AsyncClient(where) as client:
            told = [each async for each in client.stream_feedback(entries)]
            assert [each.entry_id for each in told] == [each.entry_id for each in entries]
            again = [each async for each in client.stream_feedback(later())]
            assert {each.status for each in again} == {AckStatus.DUPLICATE}
            assert len(again) == 300
            (one,) = await client.send_feedback(entries[0])
            assert one.status is AckStatus.DUPLICATE
            async for each in client.stream_feedback(entries):
                assert each.durable
                break

    asyncio.run(run(target(launch, feedback=url)))


STREAM = "edgewright.v1.FeedbackService/StreamFeedback"


def in_time(stream: Callable[[float], list[Acknowledgement]]) -> list[Acknowledgement]:
    """By the shortest deadline within which this machine answers what it was sent before."""
    for timeout_s in (2.0, 8.0):
        with suppress(EdgewrightError):
            return stream(timeout_s)
    return stream(32.0)


def test_a_call_may_pass_its_deadline_while_entries_are_waited_for(
    launch: Launch, url: str
) -> None:
    running = launch(feedback=url)
    where = f"127.0.0.1:{running.server.port}"

    def ended() -> float:
        return running.metric("edgewright_requests_total", method=STREAM)

    def slowly() -> Iterator[Feedback]:
        before = ended()
        yield from (Feedback("sport", f"p{index}") for index in range(64))  # a whole message
        until(lambda: ended() > before)
        yield Feedback("sport", "last")

    async def later() -> AsyncIterator[Feedback]:
        before = ended()
        for index in range(64):
            yield Feedback("sport", f"q{index}")
        await asyncio.to_thread(until, lambda: ended() > before)
        yield Feedback("sport", "last")

    async def run(timeout_s: float) -> list[Acknowledgement]:
        async with AsyncClient(where) as client:
            told = [each async for each in client.stream_feedback(later(), timeout_s=timeout_s)]
        if AckStatus.DUPLICATE in {each.status for each in told}:
            raise ServiceError("not read before the deadline passed")
        return told

    with Client(where) as client:
        told = in_time(lambda s: list(client.stream_feedback(slowly(), timeout_s=s)))
        assert [each.durable for each in told] == [True] * 65
    told = in_time(lambda s: asyncio.run(run(s)))
    assert [each.durable for each in told] == [True] * 65


def test_asynchronous_entries_may_wait_for_acknowledgements(launch: Launch, url: str) -> None:
    async def run(where: str) -> int:
        told = asyncio.Semaphore(1)

        async def one_by_one() -> AsyncIterator[Feedback]:
            for index in range(3):
                await told.acquire()
                yield Feedback("sport", f"p{index}")

        count = 0
        async with AsyncClient(where) as client, asyncio.timeout(120):
            async for _ in client.stream_feedback(one_by_one()):
                told.release()
                count += 1
        return count

    assert asyncio.run(run(target(launch, feedback=url))) == 3


def test_asynchronous_entries_are_let_go_with_the_stream(launch: Launch, url: str) -> None:
    async def run(where: str) -> list[str]:
        ended = []

        async def endless() -> AsyncIterator[Feedback]:
            try:
                yield Feedback("sport", "p")
                await asyncio.Event().wait()
            finally:
                ended.append("entries")

        async with AsyncClient(where) as client:
            stream = client.stream_feedback(endless())
            assert (await anext(stream)).durable
            await stream.aclose()  # type: ignore[attr-defined]
            return list(ended)  # as it is now: the loop's own end would let go of them too

    assert asyncio.run(run(target(launch, feedback=url))) == ["entries"]


def test_a_server_without_a_store_says_so(launch: Launch) -> None:
    where = target(launch)
    with Client(where) as client:
        with pytest.raises(BackendUnavailableError, match="--feedback"):
            client.send_feedback(Feedback("sport", "p"))
        with pytest.raises(BackendUnavailableError, match="--feedback"):
            list(client.stream_feedback([Feedback("sport", "p")]))

    async def run() -> None:
        async with AsyncClient(where) as client:
            with pytest.raises(BackendUnavailableError, match="--feedback"):
                [each async for each in client.stream_feedback([Feedback("sport", "p")])]

    asyncio.run(run())
