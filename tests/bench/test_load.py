"""Both loops against a simulated server on a simulated clock: no second of it is real."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from virtual_loop import VirtualLoop, run_virtually

from edgewright.bench.arrivals import Arrivals, arrivals
from edgewright.bench.load import PAUSE_S, closed_loop, open_loop
from edgewright.bench.tally import Failure, Tally, Window

REFUSED = Failure("RESOURCE_EXHAUSTED", "QUEUE_FULL", "full")
GONE = Failure("UNAVAILABLE", "", "no server")


class Server:
    """Answers one call after the other, each in ``service_s``; nothing from ``stall`` on, for 1 s."""

    def __init__(self, service_s: float = 0.001, stall: float | None = None) -> None:
        self.service_s = service_s
        self.stall = stall
        self.free_at = 0.0
        self.arrived: list[float] = []
        self.fails: Callable[[float], Failure | None] = lambda now: None

    async def __call__(self) -> Failure | None:
        now = asyncio.get_running_loop().time()
        self.arrived.append(now)
        if failure := self.fails(now):
            await asyncio.sleep(0.001)
            return failure
        begin = max(now, self.free_at)
        if self.stall is not None and self.stall <= begin < self.stall + 1:
            begin = self.stall + 1
        self.free_at = begin + self.service_s
        await asyncio.sleep(self.free_at - now)
        return None


def window(warm_up: float = 0.0, seconds: float = 10.0) -> Window:
    return Window(0.0, warm_up, warm_up + seconds)


def closed(server: Server, callers: int, over: Window) -> Tally:
    tally = Tally()
    run_virtually(closed_loop(server, callers, over, tally))
    return tally


def opened(
    server: Callable[[], Awaitable[Failure | None]],
    rate: float,
    over: Window,
    max_in_flight: int = 10_000,
) -> Tally:
    tally = Tally()
    due = arrivals(Arrivals.CONSTANT, rate, 0)
    run_virtually(open_loop(server, due, over, tally, max_in_flight))
    return tally


def test_a_stall_shows_in_the_percentiles_of_an_open_loop_and_not_of_a_closed_one() -> None:
    """The textbook case of coordinated omission: 1 of 10 s nothing is answered."""
    one_caller = closed(Server(stall=2.0), 1, window())
    assert one_caller.response.most_ns == pytest.approx(1.001e9, rel=0.002)  # one call of 9,000
    assert one_caller.response.quantile_s(0.999) == pytest.approx(0.001, rel=0.01)

    by_schedule = opened(Server(stall=2.0), 100.0, window())
    assert by_schedule.due == 1000
    # Due in the stall were 100 of 1,000 calls, and each waited until its end.
    assert by_schedule.response.quantile_s(0.99) == pytest.approx(0.909, rel=0.01)
    assert by_schedule.response.quantile_s(0.90) > 0.05
    assert by_schedule.response.quantile_s(0.50) == pytest.approx(0.001, rel=0.01)


def test_a_call_that_is_held_back_counts_from_when_it_was_due() -> None:
    """What wrk2 corrects: with one connection the stall delays the sends, not the calls sent."""
    tally = opened(Server(stall=2.0), 100.0, window(), max_in_flight=1)
    assert tally.due == 1000
    assert tally.service.quantile_s(0.99) == pytest.approx(0.001, rel=0.01)
    assert tally.response.quantile_s(0.99) == pytest.approx(0.909, rel=0.01)
    assert tally.held_back > 100
    assert tally.lag.count == 1000 - tally.held_back  # the generator was not to blame
    assert tally.lag.most_ns == 0


def test_calls_are_sent_when_they_are_due_whatever_becomes_of_others() -> None:
    server = Server(stall=0.0)
    opened(server, 50.0, window(seconds=2.0))
    assert server.arrived == pytest.approx([number / 50 for number in range(100)])


def test_what_is_due_in_the_warm_up_is_sent_and_not_counted() -> None:
    server = Server(stall=0.5)
    tally = opened(server, 100.0, window(warm_up=2.0, seconds=3.0))
    assert len(server.arrived) == 500
    assert tally.due == tally.answered == tally.lag.count == 300
    assert tally.response.most_ns == pytest.approx(1e6, rel=0.01)
    assert tally.answered_within == [150, 150]

    server = Server(stall=0.5)
    tally = closed(server, 1, window(warm_up=2.0, seconds=3.0))
    assert len(server.arrived) == pytest.approx(4000, abs=2)
    assert tally.due == pytest.approx(3000, abs=2)
    assert tally.response.most_ns == pytest.approx(1e6, rel=0.01)


def test_what_is_in_flight_at_the_end_is_waited_for_and_is_no_throughput() -> None:
    tally = opened(Server(stall=4.5), 100.0, window(seconds=5.0))
    assert tally.due == tally.answered == 500
    assert tally.response.most_ns > 0.9e9
    assert sum(tally.answered_within) == 450


def test_an_overloaded_server_has_the_throughput_of_what_it_answers_in_time() -> None:
    tally = opened(Server(service_s=0.02), 100.0, window(warm_up=1.0, seconds=4.0))
    assert sum(tally.answered_within) == pytest.approx(4 * 50, abs=2)
    assert tally.due == tally.answered == 400
    assert tally.response.most_ns == pytest.approx(5.0e9, rel=0.02)


def test_what_could_not_be_sent_in_time_is_told() -> None:
    tally = opened(Server(service_s=0.5), 10.0, window(seconds=5.0), max_in_flight=1)
    assert tally.due == 50
    assert tally.answered == pytest.approx(12, abs=1)
    assert tally.unsent == 50 - tally.answered


def test_a_generator_that_is_late_counts_its_own_lag() -> None:
    async def busy(tally: Tally) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.call_at(1.005, loop.block, 0.5)
        await open_loop(Server(), arrivals(Arrivals.CONSTANT, 100.0, 0), window(), tally)

    tally = Tally()
    run_virtually(busy(tally))
    assert tally.lag.most_ns == pytest.approx(0.495e9, rel=0.01)
    assert tally.held_back == 0
    assert tally.response.most_ns >= 0.495e9
    assert tally.service.most_ns < 0.1e9  # what waited in the server's line behind the others


def test_callers_of_a_closed_loop_are_as_many_as_asked() -> None:
    busy = most = 0

    async def server() -> Failure | None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.01)
        busy -= 1
        return None

    tally = Tally()
    run_virtually(closed_loop(server, 7, window(seconds=1.0), tally))
    assert most == 7
    assert tally.answered == pytest.approx(700, abs=7)


def test_failures_are_counted_by_kind_with_the_time_of_the_first_and_last() -> None:
    server = Server()
    server.fails = lambda now: GONE if 2.0 <= now < 3.0 else REFUSED if 6.0 <= now < 7.0 else None
    tally = opened(server, 100.0, window(warm_up=1.0, seconds=9.0))
    assert (tally.due, tally.answered, tally.refused, tally.failed) == (900, 700, 100, 100)
    assert tally.failed_within == 200
    gone = tally.failures["UNAVAILABLE", ""]
    assert (gone.count, gone.message) == (100, "no server")
    assert (gone.first_s, gone.last_s) == pytest.approx((1.0, 1.99), abs=0.012)
    assert tally.response.count == 700  # a refusal is no fast answer


@pytest.mark.parametrize("failure", [REFUSED, GONE], ids=lambda each: each.code)
def test_a_caller_that_was_turned_away_waits_before_it_comes_again(failure: Failure) -> None:
    server = Server()
    server.fails = lambda now: failure
    tally = closed(server, 2, window(seconds=1.0))
    assert tally.due == pytest.approx(2 * 1.0 / PAUSE_S, abs=2)
    assert tally.answered == 0


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_a_load_that_is_broken_off_says_what_was_in_flight(kind: str) -> None:
    server = Server(stall=2.0)
    tally = Tally()

    async def make() -> None:
        if kind == "open":
            due = arrivals(Arrivals.CONSTANT, 100.0, 0)
            await open_loop(server, due, window(), tally)
        else:
            await closed_loop(server, 4, window(), tally)

    async def broken_off() -> None:
        load = asyncio.ensure_future(make())
        await asyncio.sleep(2.505)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load

    run_virtually(broken_off())
    assert tally.unfinished == (51 if kind == "open" else 4)
    assert tally.answered == (200 if kind == "open" else pytest.approx(2000, abs=5))
