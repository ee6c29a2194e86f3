"""Who calls goes by which name, and how many calls he may have in flight."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
import pytest

from edgewright.errors import CallerLimitError, UnauthenticatedError
from edgewright.serve.callers import Callers, Peer
from edgewright.serve.reloaded import Reloaded
from edgewright.serve.tokens import Right, new_token, read_tokens
from edgewright.v1.prediction_pb2 import ClassifyTextRequest, StreamClassifyRequest, StreamItem

from .conftest import Gate, Launch, until
from .test_server import details

Code = grpc.StatusCode


class Context:
    """What gRPC tells of a call."""

    def __init__(
        self, peer: str, metadata: tuple[tuple[str, Any], ...], **auth: list[bytes]
    ) -> None:
        self._peer, self._metadata, self._auth = peer, metadata, auth

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return self._auth


def test_a_peer_is_known_by_address_header_and_subject() -> None:
    assert Peer.of(Context("ipv4:10.0.0.1:555", ())) == Peer("10.0.0.1")
    assert Peer.of(Context("ipv6:%5B::1%5D:555", ())).address == "[::1]"
    assert Peer.of(Context("unix:", ())).address == "unix"
    sent = (("x-other", "a"), ("authorization", "Bearer b"))
    assert Peer.of(Context("ipv4:1.1.1.1:1", sent)).authorization == "Bearer b"
    named = Context("ipv4:1.1.1.1:1", (), x509_subject=[b"CN=alice"], x509_pem_cert=[b"..."])
    assert Peer.of(named).subject == "CN=alice"
    assert Peer.of(Context("ipv4:1.1.1.1:1", (), x509_pem_cert=[b"..."])).subject


def test_one_caller_has_no_more_in_flight_than_he_may_and_others_have_room() -> None:
    callers = Callers(most_calls=2)
    one, other = Peer("10.0.0.1"), Peer("10.0.0.2")
    names = [callers.enter(Right.CALL, one) for _ in range(2)]
    with pytest.raises(CallerLimitError, match=r"10\.0\.0\.1 has 2 calls in flight") as caught:
        callers.enter(Right.CALL, one)
    assert caught.value.retry_after_s > 0
    assert callers.enter(Right.CALL, other)
    callers.leave(names[0])
    assert callers.enter(Right.CALL, one) == names[0]


@pytest.mark.parametrize("right", [Right.METRICS, Right.ADMIN])
def test_who_has_all_the_calls_that_he_may_can_still_look_and_command(right: Right) -> None:
    callers, one = Callers(most_calls=1), Peer("10.0.0.1")
    callers.enter(Right.CALL, one)
    for _ in range(2):
        callers.leave(callers.enter(right, one))
    with pytest.raises(CallerLimitError):  # no place of his was given back
        callers.enter(Right.CALL, one)


def test_a_certificate_goes_before_an_address() -> None:
    callers = Callers(wants_certificate=True)
    assert callers.enter(Right.CALL, Peer("10.0.0.1", subject="CN=alice")) == "CN=alice"
    with pytest.raises(UnauthenticatedError):
        callers.enter(Right.CALL, Peer("10.0.0.1"))
    assert callers.enter(None, Peer("10.0.0.1")) == ""


def test_a_caller_without_a_token_is_told_both_ways_to_give_one(tmp_path: Path) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text(f"news-site {'0' * 64} call\n")
    tokens = Reloaded(
        "tokens", {"--tokens": file}, lambda files: read_tokens(file, files[0]), lambda *_: None
    )
    callers = Callers(tokens=tokens)
    with pytest.raises(UnauthenticatedError, match="--token-file, .* `authorization: Bearer"):
        callers.enter(Right.CALL, Peer("10.0.0.1"))


def test_nobody_is_remembered_once_he_has_left() -> None:
    callers, rng, inside = Callers(most_calls=3), random.Random(1), []
    expected: Counter[str] = Counter()
    for _ in range(20_000):
        if inside and rng.random() < 0.5:
            name = inside.pop(rng.randrange(len(inside)))
            callers.leave(name)
            expected[name] -= 1
            continue
        try:
            inside.append(callers.enter(Right.CALL, Peer(f"10.0.0.{rng.randrange(200)}")))
            expected[inside[-1]] += 1
        except CallerLimitError:
            continue
    assert callers._in_flight == +expected
    for name in inside:
        callers.leave(name)
    assert not callers._in_flight


def greedy_and_modest(tokens: Path) -> list[tuple[tuple[str, str], ...]]:
    """Writes a file of two callers' tokens; the metadata of each."""
    made = [new_token(name, [Right.CALL]) for name in ("greedy", "modest")]
    tokens.write_text("\n".join(token.line() for _, token in made))
    return [(("authorization", f"Bearer {secret}"),) for secret, _ in made]


def test_a_greedy_token_is_refused_and_another_is_answered(
    launch: Launch, gate: Callable[[], Gate], tmp_path: Path
) -> None:
    greedy, modest = greedy_and_modest(tmp_path / "tokens")
    running = launch(tokens=tmp_path / "tokens", max_calls_per_caller=2)
    request = ClassifyTextRequest(texts=["bank"])
    held = gate()
    with ThreadPoolExecutor(3) as pool:
        call = running.predictions.ClassifyText
        waiting = [pool.submit(call, request, metadata=greedy, timeout=60) for _ in range(2)]
        until(lambda: running.server.batcher.queue.rows == 2)
        with pytest.raises(grpc.RpcError) as failure:
            call(request, metadata=greedy, timeout=60)
        waiting.append(pool.submit(call, request, metadata=modest, timeout=60))
        until(lambda: running.server.batcher.queue.rows == 3)
        held.open.set()
        assert all(each.result().classifications for each in waiting)
    reason, _, retry_s = details(failure.value)
    assert (failure.value.code(), reason) == (Code.RESOURCE_EXHAUSTED, "CALLER_LIMIT")
    assert retry_s
    assert running.metric("edgewright_rejected_total", reason="CALLER_LIMIT") == 1
    until(lambda: running.server.in_flight == 0)
    assert call(request, metadata=greedy, timeout=60).classifications


def test_one_caller_s_rows_leave_room_in_the_queue_for_another_s(
    launch: Launch, gate: Callable[[], Gate], tmp_path: Path
) -> None:
    greedy, modest = greedy_and_modest(tmp_path / "tokens")
    running = launch(tokens=tmp_path / "tokens", max_rows_per_caller=3, max_texts=3)
    held, call = gate(), running.predictions.ClassifyText
    three, one = ClassifyTextRequest(texts=["bank"] * 3), ClassifyTextRequest(texts=["bank"])
    waiting = [call.future(three, metadata=greedy, timeout=60)]
    until(lambda: running.server.batcher.queue.rows == 3)
    with pytest.raises(grpc.RpcError) as failure:
        call(one, metadata=greedy, timeout=60)
    waiting.append(call.future(three, metadata=modest, timeout=60))
    until(lambda: running.server.batcher.queue.rows == 6)
    held.open.set()
    assert [len(each.result().classifications) for each in waiting] == [3, 3]
    reason, _, retry_s = details(failure.value)
    assert (failure.value.code(), reason) == (Code.RESOURCE_EXHAUSTED, "CALLER_LIMIT")
    assert "greedy has 3 rows waiting" in failure.value.details()
    assert retry_s
    assert running.metric("edgewright_rejected_total", reason="CALLER_LIMIT") == 1
    assert call(one, metadata=greedy, timeout=60).classifications


def test_each_caller_s_streams_have_an_allowance_of_rows_of_their_own(
    launch: Launch, gate: Callable[[], Gate], tmp_path: Path
) -> None:
    greedy, modest = greedy_and_modest(tmp_path / "tokens")
    running = launch(tokens=tmp_path / "tokens", max_rows_per_caller=3, max_texts=3)
    held, call = gate(), running.predictions.StreamClassify
    three = StreamClassifyRequest(items=[StreamItem(text="bank")] * 3)
    streams = [call(iter([three] * 2), metadata=greedy, timeout=60)]
    until(lambda: running.server.batcher.queue.rows == 3)
    with pytest.raises(grpc.RpcError) as failure:  # a stream's rows are its caller's
        one = ClassifyTextRequest(texts=["bank"])
        running.predictions.ClassifyText(one, metadata=greedy, timeout=60)
    assert "greedy has 3 rows waiting" in failure.value.details()
    streams.append(call(iter([three] * 2), metadata=modest, timeout=60))
    until(lambda: running.server.batcher.queue.rows == 6)
    held.open.set()
    assert [[len(each.answers) for each in stream] for stream in streams] == [[3, 3]] * 2


def test_without_tokens_the_rows_are_counted_by_address_over_both_protocols(
    launch: Launch, gate: Callable[[], Gate]
) -> None:
    running = launch(max_rows_per_caller=2, max_texts=2)
    held = gate()
    waiting = running.predictions.ClassifyText.future(running.request("a", "b"), timeout=60)
    until(lambda: running.server.batcher.queue.rows == 2)
    at = f"http://127.0.0.1:{running.server.metrics_port}/v1/models/news:classify"
    with pytest.raises(HTTPError) as failure:
        urlopen(at, json.dumps({"texts": ["bank"]}).encode(), timeout=60)
    held.open.set()
    assert len(waiting.result().classifications) == 2
    with failure.value as answer:
        assert (answer.code, json.load(answer)["reason"]) == (429, "CALLER_LIMIT")


def test_a_caller_who_fails_or_vanishes_gives_his_place_back(launch: Launch) -> None:
    running = launch(max_calls_per_caller=1)
    for _ in range(5):
        with pytest.raises(grpc.RpcError) as failure:
            running.classify("x", model="none")
        assert failure.value.code() is Code.NOT_FOUND
        until(lambda: running.server.in_flight == 0)
    stream = running.predictions.StreamClassify(iter([]), timeout=60)
    assert list(stream) == []
    until(lambda: running.server.in_flight == 0)
    assert running.classify("bank").classifications
