"""Models in processes of their own: grouped, repeated, and none takes the others down."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from edgewright.errors import BackendUnavailableError
from edgewright.latency import Effort, Samples, Shape, Workload
from edgewright.latency_process import AT_ONCE, Death, Entrant, Measured, measure, repeat

WORKLOAD = Workload.parse("1x4,2x8")
QUICK = Effort(budget_s=0.1, min_rounds=3, max_rounds=3)


def entrants(*names: str) -> list[Entrant]:
    return [Entrant(name, "onnxruntime", Path(f"{name}.onnx")) for name in names]


class Launcher:
    """Stands in for processes: who is poison kills his."""

    def __init__(self, poison: Callable[[list[str]], str | None] = lambda _names: None) -> None:
        self.groups: list[list[str]] = []
        self.poison = poison

    def __call__(self, group: Sequence[Entrant]) -> Samples | Death:
        names = [each.name for each in group]
        self.groups.append(names)
        culprit = self.poison(names)
        if culprit is not None:
            return Death(culprit, "it died")
        return {name: {Shape(1, 4): np.ones(3)} for name in names}


class TestRepeat:
    def test_few_are_timed_at_once_each_time_beside_the_baseline_and_groups_take_turns(
        self,
    ) -> None:
        launch = Launcher()
        kept, failures = repeat(entrants("fp32", *"abcdefg"), 3, launch)
        assert launch.groups == [["fp32", *"abcde"], ["fp32", *"fg"]] * 3
        assert max(map(len, launch.groups)) == AT_ONCE
        assert (len(kept), failures) == (6, {})

    def test_the_baseline_alone_is_timed_too(self) -> None:
        launch = Launcher()
        repeat(entrants("fp32"), 3, launch)
        assert launch.groups == [["fp32"]] * 3

    def test_who_dies_twice_has_failed_and_the_others_are_timed_as_often_as_ever(self) -> None:
        launch = Launcher(lambda names: "c" if "c" in names else None)
        kept, failures = repeat(entrants("fp32", *"abcde"), 3, launch)
        assert failures == {"c": "it died"}
        assert ["fp32", "c"] in launch.groups
        counts = Counter(name for samples in kept for name in samples)
        assert counts == dict.fromkeys(["fp32", *"abde"], 3)

    def test_who_dies_only_in_company_is_timed_alone(self) -> None:
        launch = Launcher(lambda names: "c" if len(names) > 3 else None)
        kept, failures = repeat(entrants("fp32", *"abc"), 3, launch)
        assert failures == {}
        counts = Counter(name for samples in kept for name in samples)
        assert counts["a"] == counts["b"] == counts["c"] == 3

    def test_samples_of_one_that_fails_later_are_not_kept(self) -> None:
        launch = Launcher()
        launch.poison = lambda names: "b" if len(launch.groups) > 1 and "b" in names else None
        kept, failures = repeat(entrants("fp32", *"abc"), 3, launch)
        assert list(failures) == ["b"]
        assert not [samples for samples in kept if "b" in samples]
        assert Counter(name for samples in kept for name in samples)["a"] == 3

    def test_the_baseline_is_timed_even_where_nothing_else_can_be(self) -> None:
        kept, failures = repeat(
            entrants("fp32", "a"), 3, Launcher(lambda names: "a" if "a" in names else None)
        )
        assert failures == {"a": "it died"}
        assert [list(samples) for samples in kept] == [["fp32"]] * 3

    @pytest.mark.parametrize("culprit", ["fp32", None])
    def test_where_the_baseline_or_nobody_is_to_blame_the_group_is_halved(self, culprit) -> None:
        launch = Launcher(lambda names: culprit or "" if "d" in names else None)
        _, failures = repeat(entrants("fp32", *"abcd"), 3, launch)
        assert list(failures) == ["d"]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Not dead, nor dead and waiting for somebody to ask how it ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that adds one."""
    ids = helper.make_tensor_value_info("ids", TensorProto.FLOAT, ["rows", "length"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", "length"])
    one = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    node = helper.make_node("Add", ["ids", "one"], ["logits"])
    graph = helper.make_graph([node], "g", [ids], [out], [one])
    path = tmp_path_factory.mktemp("model") / "add.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def make_inputs(shape: Shape, index: int):
    return {"ids": np.full((shape.rows, shape.length), index, np.float32)}


FAKE = """
import os, signal, time
from edgewright.backends import BACKENDS
BACKENDS["fake"] = "fake_backend"
"""
FAKE_BACKEND = """
import os, signal, sys, time

class Session:
    inputs = outputs = ()
    def __init__(self, kind, log, threads):
        self.kind = kind
        log.open("a").write(f"{os.getpid()} {kind} {threads}\\n")
    def run(self, arrays):
        if self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "crashing":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.kind == "hanging":
            time.sleep(600)
        if self.kind == "raising":
            raise RuntimeError("no kernel for this shape")
        assert arrays["ids"].dtype == "float32"
        return {}

class Backend:
    name = "fake"
    def runtime(self):
        return "fake 1"
    def load(self, path, *, threads, options=None):
        print("a library that talks")
        return Session(options["kind"], path, threads)

BACKEND = Backend()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Entrant]:
    """Makes an entrant of a backend that the processes know, and that does as its name says."""
    (tmp_path / "sitecustomize.py").write_text(FAKE)
    (tmp_path / "fake_backend.py").write_text(FAKE_BACKEND)
    path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    return lambda kind: Entrant(kind, "fake", tmp_path / "log", {"kind": kind})


class TestMeasure:
    def test_every_model_gets_a_timing_from_processes_of_their_own(self, fake, tmp_path) -> None:
        told = measure(
            [fake("sound"), fake("other")], WORKLOAD, make_inputs, threads=2, effort=QUICK
        )
        assert list(told.timings) == ["sound", "other"]
        assert told.failures == {}
        timing = told.timings["other"]
        assert len(timing.ratios) == 3
        assert {shape: each.calls for shape, each in timing.latencies.items()} == {
            "1x4": 9,
            "2x8": 9,
        }
        assert told.timings["sound"].ratio == 1
        loads = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
        processes = {process for process, *_ in loads}
        assert len(processes) == 3
        assert str(os.getpid()) not in processes
        assert {threads for *_, threads in loads} == {"2"}

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ("killed", "its process was killed, as the system does when memory runs out"),
            ("crashing", "its process crashed (SIGSEGV)"),
            ("raising", "RuntimeError: no kernel for this shape"),
        ],
    )
    def test_who_kills_his_process_fails_with_the_reason_and_alone(self, fake, kind, reason):
        group = [fake("sound"), fake(kind), fake("other")]
        told = measure(group, WORKLOAD, make_inputs, threads=1, effort=QUICK)
        assert told.failures == {kind: reason}
        assert list(told.timings) == ["sound", "other"]

    def test_who_does_not_answer_is_given_up(self, fake) -> None:
        group = [fake("sound"), fake("hanging")]

        def told_within(stall_s: float) -> Measured:
            return measure(group, WORKLOAD, make_inputs, threads=1, effort=QUICK, stall_s=stall_s)

        try:
            stall_s, told = 3, told_within(3)
        except BackendUnavailableError:  # on a machine where a process takes longer to begin
            stall_s, told = 30, told_within(30)
        assert told.failures == {"hanging": f"it did not answer within {stall_s} s"}
        assert list(told.timings) == ["sound"]

    @pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' prctl")
    def test_no_process_outlives_a_run_that_is_killed(self, fake, tmp_path) -> None:
        log = fake("hanging").file
        program = (
            "from test_latency_process import *\n"
            f"group = [Entrant('hanging', 'fake', Path({str(log)!r}), {{'kind': 'hanging'}})]\n"
            "measure(group, WORKLOAD, make_inputs, threads=1, effort=QUICK)"
        )
        folder = str(Path(__file__).parent)
        with subprocess.Popen([sys.executable, "-c", program], cwd=folder) as run:
            wait_until(lambda: log.is_file() and log.read_text().endswith("\n"))
            run.kill()
        process = int(log.read_text().split()[0])
        try:
            wait_until(lambda: not is_running(process))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def test_a_file_that_is_no_model_fails_with_what_the_runtime_says(self, file, tmp_path):
        (tmp_path / "broken.onnx").write_bytes(b"not a model")
        group = [
            Entrant("fp32", "onnxruntime", file),
            Entrant("broken", "onnxruntime", tmp_path / "broken.onnx"),
            Entrant("alone", "onnxruntime", file, row_by_row=True),
        ]
        told = measure(group, WORKLOAD, make_inputs, threads=1, effort=QUICK)
        assert list(told.timings) == ["fp32", "alone"]
        assert "ONNX Runtime cannot load" in told.failures["broken"]

    def test_without_a_baseline_there_is_nothing_to_compare(self, fake) -> None:
        with pytest.raises(BackendUnavailableError, match="raising cannot be timed.*no kernel"):
            measure([fake("raising")], WORKLOAD, make_inputs, threads=1, effort=QUICK)

    def test_a_folder_called_edgewright_in_the_working_directory_is_not_run(
        self, file, tmp_path, monkeypatch
    ) -> None:
        for name in ("edgewright", "numpy"):
            (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
        monkeypatch.chdir(tmp_path)
        told = measure(
            [Entrant("fp32", "onnxruntime", file)], WORKLOAD, make_inputs, threads=1, effort=QUICK
        )
        assert list(told.timings) == ["fp32"]

    def test_nothing_is_printed_by_what_the_libraries_say(self, fake, capfd) -> None:
        measure([fake("sound")], WORKLOAD, make_inputs, threads=1, effort=QUICK)
        assert capfd.readouterr() == ("", "")
