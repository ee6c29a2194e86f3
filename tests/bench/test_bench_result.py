"""Figures, what they rest on, and doubts about them; and the search for a rate."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from edgewright.bench import page
from edgewright.bench.config import BenchConfig, Closed, Load, Open, Search
from edgewright.bench.find_rate import CLOSE_ENOUGH, highest_rate, holds
from edgewright.bench.processes import Measured
from edgewright.bench.record import Record
from edgewright.bench.requests import Requests
from edgewright.bench.result import Result
from edgewright.bench.sweep import Sweep
from edgewright.bench.tally import Effort, Failure, Tally, Window
from edgewright.bench_command import _unanswered
from edgewright.errors import ConfigError

WINDOW = Window(100.0, 102.0, 112.0)


def tally_of(calls: int, seconds: float = 0.01, *, lag: float = 0.0) -> Tally:
    """Calls that were due evenly over the window."""
    tally = Tally(efforts=[Effort(0.3, 0.0)])
    for number in range(calls):
        due = WINDOW.measured_from + 10 * number / calls
        tally.lag.record(lag)
        tally.ended(WINDOW, due, due + lag, due + lag + seconds)
    return tally


def result_of(tally: Tally, load: Load = Closed(8), **measured: Any) -> Result:
    return Result(Measured(load, WINDOW, tally, **{"interrupted": False, **measured}), 4)


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        (0, []), (19, []), (20, ["p50"]), (100, ["p50", "p90"]), (999, ["p50", "p90"]),
        (1000, ["p50", "p90", "p99"]), (9999, ["p50", "p90", "p99"]),
        (10_000, ["p50", "p90", "p99", "p99_9"]),
    ],
)  # fmt: skip
def test_a_percentile_is_told_where_ten_calls_are_slower(calls: int, told: list[str]) -> None:
    latency = result_of(tally_of(calls)).to_json()["response_ms"]
    if not calls:
        assert latency is None
        return
    assert latency["calls"] == calls
    assert [name for name, value in latency.items() if name[0] == "p" and value] == told


@pytest.mark.parametrize(("calls", "named"), [(100, True), (1000, False)])
def test_a_curve_that_has_no_legend_names_its_percentile(calls: int, named: bool) -> None:
    """Beside p50 there is a curve of p99 from 1,000 calls on."""
    figure = page._throughput([result_of(tally_of(calls))])
    assert ("p50, ms" in figure.svg) is named


def test_a_load_that_was_made_twice_has_two_curves() -> None:
    results = [result_of(tally_of(100)) for _ in range(2)]
    for figure in (page._percentiles(results), page._histograms(results)):
        assert "8 callers" in figure.svg
        assert "8 callers (2)" in figure.svg


@pytest.mark.parametrize(
    ("answered_at", "told", "headline"),
    [
        (101.9, "x:1 answered no call", "No call was answered"),
        (102.0, "nothing was measured", "Nothing was measured"),
    ],
)
def test_a_generator_that_never_caught_up_is_not_the_servers_silence(
    answered_at: float, told: str, headline: str
) -> None:
    tally = Tally(unsent=100)
    tally.ended(WINDOW, 101.0, 101.0, answered_at)
    nothing: Any = None
    record = Record(
        "x:1", nothing, nothing, Requests("/m", [b"x"], 1), BenchConfig(()), [result_of(tally, Open(9.0))], None,
        interrupted=False, began="", host={"name": "h", "cores": 2},
    )  # fmt: skip
    assert record.answered == 0
    assert _unanswered(record).startswith(told)
    assert page._headline(record, []).text.startswith(headline)


def test_goodput_and_throughput_are_told_apart() -> None:
    tally = tally_of(1000)
    for number in range(500):
        due = 102.0 + number / 50
        tally.broke(WINDOW, due, Failure("RESOURCE_EXHAUSTED", "QUEUE_FULL", "full"), due)
    result = result_of(tally)
    told = result.to_json()
    assert told["calls"]["refused"] == 500
    assert told["calls"]["failed"] == 0
    assert told["calls_per_s"] == pytest.approx(100, abs=0.2)
    assert told["rows_per_s"] == 4 * told["calls_per_s"]
    assert told["ended_per_s"] == pytest.approx(150, abs=0.2)
    assert told["answered_share"] == pytest.approx(2 / 3, abs=1e-6)
    assert any("500 of 1500 calls got no answer" in each for each in result.warnings())


def test_a_sound_result_has_no_warnings() -> None:
    result = result_of(tally_of(2000), Open(200.0))
    assert result.warnings() == []
    assert result.kept_up
    assert result.steady is True
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (lambda tally: tally.efforts.append(Effort(0.95, 0.0)), "used 95% of a core"),
        (lambda tally: tally.efforts.append(Effort(0.2, 0.4)), "WAITED FOR A CORE 40%"),
        (lambda tally: tally.add(tally_of(2000, lag=0.005)), "sent 5.0 ms or more after"),
    ],
)
def test_a_generator_that_was_the_limit_is_told_loudly(change: Any, warning: str) -> None:
    tally = tally_of(2000)
    change(tally)
    result = result_of(tally, Open(200.0))
    assert not result.kept_up
    assert any(warning in each and "THE GENERATOR" in each for each in result.warnings())
    assert result.to_json()["generator"]["kept_up"] is False


@pytest.mark.parametrize("late", [0.02, 0.01], ids=["slower", "fewer"])
def test_a_second_half_unlike_the_first_is_not_steady(late: float) -> None:
    tally = tally_of(1000)
    for number in range(1000):
        due = WINDOW.middle + number / 200
        tally.ended(WINDOW, due, due, due + late)
    result = result_of(tally)
    assert result.steady is False
    assert any("not steady" in each for each in result.warnings())


def test_a_load_that_was_broken_off_says_so_and_not_whether_it_was_steady() -> None:
    result = result_of(tally_of(1000), interrupted=True)
    assert result.steady is None
    assert "broken off after 10.0 s" in result.warnings()


@pytest.mark.parametrize("highest", [0.7, 3.0, 99.0, 1234.5, 80_000.0])
@pytest.mark.parametrize("first", [1.0, 100.0, 30_000.0])
def test_the_highest_rate_is_found_from_wherever_the_search_begins(
    highest: float, first: float
) -> None:
    tried: list[float] = []

    def attempt(rate: float) -> bool:
        tried.append(rate)
        return rate <= highest

    found = highest_rate(attempt, first)
    assert len(tried) == len(set(tried)) <= 30
    if first > 64 * highest:
        assert found is None or found <= highest
    else:
        assert found is not None
        assert found <= highest < found * CLOSE_ENOUGH * 1.01 or found == max(tried)


def test_a_search_gives_up_where_nothing_holds_and_stops_where_it_is_told_to() -> None:
    tried: list[float] = []
    assert highest_rate(lambda rate: bool(tried.append(rate)), 1000.0) is None
    assert min(tried) == pytest.approx(1000 / 64, rel=0.01)
    assert highest_rate(lambda rate: None, 1000.0) is None
    answers = iter([True, None])
    assert highest_rate(lambda rate: next(answers), 1000.0) == 1000.0


def test_a_rate_holds_by_its_p99_and_by_what_was_answered() -> None:
    search = Search(p99_ms=20.0)
    assert holds(result_of(tally_of(2000, 0.019)), search)
    assert not holds(result_of(tally_of(2000, 0.021)), search)
    assert not holds(result_of(tally_of(50, 0.021)), search)  # too few for a p99: the slowest
    assert not holds(result_of(tally_of(0)), search)
    refused = tally_of(2000)
    for _ in range(3):
        refused.broke(WINDOW, 105.0, Failure("RESOURCE_EXHAUSTED", "", ""), 105.0)
    assert not holds(result_of(refused), search)


def test_a_sweep_searches_from_what_a_closed_loop_reached() -> None:
    """A server that answers 400 a second and no more."""
    made: list[Load] = []

    def make(load: Load) -> Result:
        made.append(load)
        within = isinstance(load, Closed) or load.rate <= 400
        return result_of(tally_of(4000, 0.01 if within else 3.0), load)

    rate = Sweep(make).run(BenchConfig((), Search(p99_ms=50.0)))
    assert made[0] == Closed(32)
    assert isinstance(made[1], Open)
    assert made[1].rate == pytest.approx(400, rel=0.01)
    assert rate is not None
    assert 380 <= rate <= 400


def test_a_sweep_ends_with_the_load_that_was_broken_off() -> None:
    sweep = Sweep(lambda load: result_of(tally_of(10), load, interrupted=load == Closed(2)))
    assert sweep.run(BenchConfig((Closed(1), Closed(2), Closed(3)))) is None
    assert [each.load for each in sweep.results] == [Closed(1), Closed(2)]
    sweep = Sweep(lambda load: result_of(tally_of(10), load, interrupted=True))
    assert sweep.run(BenchConfig((), Search(50.0))) is None
    assert len(sweep.results) == 1


def test_every_fault_of_a_configuration_is_told() -> None:
    with pytest.raises(ConfigError) as caught:
        BenchConfig(
            (Closed(1), Open(0.0), Open(math.inf)), duration_s=math.nan, warm_up_s=-1,
            deadline_s=0, rows_per_call=0, processes=2,
        )  # fmt: skip
    told = "\n".join(caught.value.faults)
    for option in ("--duration", "--warm-up", "--deadline-ms", "--rows-per-call"):
        assert told.count(option) == 1
    assert told.count("--rate has") == 2
    assert "--concurrency has 1; with --processes 2 it is 2 to 10000" in told


@pytest.mark.parametrize("callers", [4, 5, 7, 32])
def test_the_callers_of_several_processes_are_those_asked_for(callers: int) -> None:
    shares = [Closed(callers).share(index, 4).callers for index in range(4)]
    assert sum(shares) == callers
    assert max(shares) - min(shares) <= 1
