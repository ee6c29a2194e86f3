"""Models in turns, timed by a clock of our own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgewright.errors import ConfigError
from edgewright.latency import Effort, Shape, Workload
from edgewright.latency_rounds import compare, time_in_turns


class Machine:
    """A clock, and models that take the time that is set for them on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []
        self.seen: list[tuple[int, ...]] = []

    def clock(self) -> float:
        return self.now

    def model(self, name: str, seconds):
        """``seconds`` is a function of the input's shape."""

        def run(arrays) -> None:
            shape = arrays["input_ids"].shape
            self.order.append(name)
            self.seen.append(shape)
            self.now += seconds(*shape)

        return run

    def time(self, runs, workload: str = "1x8", effort: Effort | None = None, **options):
        return time_in_turns(
            runs,
            Workload.parse(workload),
            make_inputs,
            effort=effort or Effort(),
            clock=self.clock,
            **options,
        )


def make_inputs(shape: Shape, index: int):
    return {"input_ids": np.full((shape.rows, shape.length), index)}


def test_seconds_are_those_of_the_clock_by_model_and_shape() -> None:
    machine = Machine()
    runs = {
        "fp32": machine.model("fp32", lambda rows, length: rows * length * 1e-4),
        "int8": machine.model("int8", lambda rows, length: rows * length * 0.4e-4),
    }
    samples = machine.time(runs, "1x32:0.75,8x128:0.25")
    assert list(samples) == ["fp32", "int8"]
    assert samples["fp32"][Shape(1, 32)] == pytest.approx(0.0032)
    assert samples["int8"][Shape(8, 128)] == pytest.approx(0.04096)


def test_a_machine_that_slows_down_meanwhile_slows_both_alike() -> None:
    machine = Machine()

    def drifting(seconds: float):
        return lambda *_: seconds * (1 + machine.now)

    runs = {
        "fp32": machine.model("fp32", drifting(0.02)),
        "int8": machine.model("int8", drifting(0.01)),
    }
    samples = machine.time(runs)
    fp32, int8 = samples["fp32"][Shape(1, 8)], samples["int8"][Shape(1, 8)]
    assert np.median(fp32) > 0.04  # it did slow down, by far
    assert np.median(fp32 / int8) == pytest.approx(2, rel=0.02)


def test_every_round_times_all_of_them_and_the_order_turns() -> None:
    machine = Machine()
    runs = {name: machine.model(name, lambda *_: 0.1) for name in "abc"}
    machine.time(runs, effort=Effort(budget_s=1, min_rounds=6))
    assert "".join(machine.order)[-18:] == "abccba" * 3


def test_a_model_that_depends_on_the_batch_is_timed_row_by_row() -> None:
    machine = Machine()
    runs = {
        "fp32": machine.model("fp32", lambda rows, _: 0.01 * rows),
        "dynamic": machine.model("dynamic", lambda rows, _: 0.005),
    }
    samples = machine.time(runs, "8x16", row_by_row={"dynamic"})
    by_name = dict(zip(machine.order, machine.seen, strict=True))
    assert by_name == {"fp32": (8, 16), "dynamic": (1, 16)}
    assert samples["dynamic"][Shape(8, 16)] == pytest.approx(8 * 0.005)


def test_cold_calls_are_not_counted() -> None:
    machine = Machine()
    calls = itertools.count()
    cold = machine.model("a", lambda *_: max(0.01, 0.1 - 0.02 * next(calls)))
    assert machine.time({"a": cold})["a"][Shape(1, 8)] == pytest.approx(0.01)


def test_a_model_that_never_settles_is_measured_all_the_same() -> None:
    machine = Machine()
    calls = itertools.count()
    restless = machine.model("a", lambda *_: 0.1 if next(calls) % 2 else 0.3)
    assert len(machine.time({"a": restless})["a"][Shape(1, 8)]) >= Effort().min_rounds


@pytest.mark.parametrize(
    ("call_s", "rounds"), [(1e-4, 101), (0.1, 40), (60.0, 9)], ids=["most", "some", "least"]
)
def test_budget_decides_the_rounds_within_limits(call_s: float, rounds: int) -> None:
    machine = Machine()
    runs = {name: machine.model(name, lambda *_: call_s) for name in "ab"}
    effort = Effort(budget_s=10, min_rounds=9, max_rounds=101)
    samples = machine.time(runs, effort=effort)
    assert len(samples["a"][Shape(1, 8)]) == pytest.approx(rounds, abs=1)


def test_one_process_alone_bounds_the_ratio_by_its_rounds() -> None:
    machine = Machine()
    runs = {
        "fp32": machine.model("fp32", lambda *_: 0.2),
        "int8": machine.model("int8", lambda *_: 0.1),
    }
    workload = Workload.parse("1x8")
    timing = compare(runs, "fp32", workload, make_inputs, clock=machine.clock)["int8"]
    assert (timing.ratio, timing.ratio_low, timing.ratio_high) == pytest.approx((2, 2, 2))
    assert timing.ratios == pytest.approx((2,))
    few = Effort(budget_s=0.1, min_rounds=3)
    with pytest.raises(ConfigError, match="bound no median"):
        compare(runs, "fp32", workload, make_inputs, effort=few, clock=machine.clock)
