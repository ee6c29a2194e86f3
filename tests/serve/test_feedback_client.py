"""Both clients against a real server: feedback sent, streamed, refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from edgewright.client import Acknowledgement, AckStatus, AsyncClient, Client, Feedback
from edgewright.errors import BackendUnavailableError

from .conftest import Launch


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
