"""What proves a version works in a process of its own, whatever becomes of that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgewright.errors import BackendUnavailableError, IntegrityError, NotReadyError
from edgewright.manifest import sha256_file
from edgewright.repository import Repository
from edgewright.serve import models, opening, proof_child, proof_process
from edgewright.serve.background import NICE, Background
from edgewright.serve.core_time import CoreTime
from edgewright.serve.models import ServedModel, load_model
from edgewright.serve.proof_process import LIMIT_S, ProofProcess

from . import hanging_proof
from .bundles import Recipe, make_bundle, seal_again
from .families import is_running
from .processes import FREE_PORTS, Process, Start, until

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="priorities are Linux's")


@pytest.fixture
def process(background: Background) -> Iterator[ProofProcess]:
    with ProofProcess(background) as process:
        yield process


@pytest.fixture
def idle(process: ProofProcess, monkeypatch: pytest.MonkeyPatch) -> ProofProcess:
    """One that stays on cores that nobody wants, however long a busy machine lets it wait."""
    monkeypatch.setattr(proof_process, "IDLE_S", LIMIT_S)
    monkeypatch.setattr(proof_process, "LOOK_S", LIMIT_S)
    return process


def expression(python: str) -> Callable[[], Any]:
    """Its value, computed in whichever process; ``os`` and ``time`` are at hand."""
    return partial(eval, f"(lambda os, time: {python})(__import__('os'), __import__('time'))")


PID = expression("os.getpid()")
POLICY = expression("os.sched_getscheduler(0)")
NICENESS = expression("os.getpriority(os.PRIO_PROCESS, 0)")
REST_S = expression("__import__('signal').getitimer(2)[1]")  # of a core, ITIMER_PROF
HANGS = expression("time.sleep(1000)")
DIES = "os.kill(os.getpid(), {})"


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_one_process_does_all_pieces_and_ends_with_them(background: Background) -> None:
    background.no_core_idle_until = float(
        "inf"
    )  # it has a share, with which it need not begin anew
    with ProofProcess(background) as process:
        pid = process.run(PID)
        assert pid != os.getpid()
        assert process.run(PID) == pid
    assert is_gone(pid)


@LINUX
def test_it_gets_what_cores_nobody_wants(idle: ProofProcess) -> None:
    assert idle.run(POLICY) == os.SCHED_IDLE
    assert idle.run(NICENESS) == min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)
    assert idle.run(REST_S) > 0


FORBIDDEN = """
import os
from edgewright.serve import proof_child
def forbid(*_): raise PermissionError
os.nice = os.sched_setscheduler = forbid
proof_child._give_way(10, idle=True)
print(open("/proc/self/oom_score_adj").read())
"""


@LINUX
def test_a_priority_that_is_forbidden_takes_nothing_else() -> None:
    found = subprocess.run([sys.executable, "-c", FORBIDDEN], capture_output=True, check=True)
    assert int(found.stdout) == 1000


# How often a process sleeps while it works for a tenth of a second of a core.
RESTS = """
import os, resource, time
from edgewright.serve import proof_child
proof_child._rest_as_long_as_it_works()
before = resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw
end = time.process_time() + 0.1
while time.process_time() < end:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw - before, flush=True)
os._exit(0)  # as it ends itself: without the handler of its signals
"""


def test_a_rest_within_another_does_not_end_what_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal may come again as the time of work is read, which is then earlier than the rest."""
    read, slept, handlers = iter([5.0, 4.0, 4.0, 4.5, 4.5]), list[float](), dict[int, Any]()
    clock = SimpleNamespace(process_time=lambda: next(read), sleep=slept.append)
    monkeypatch.setattr(proof_child, "time", clock)
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(signal, "siginterrupt", lambda *_: None)
    monkeypatch.setattr(signal, "setitimer", lambda *_: None)
    proof_child._rest_as_long_as_it_works()
    for _ in range(2):
        handlers[signal.SIGPROF]()
    assert slept == [0.0, 0.5]


def test_it_rests_between_pieces_of_work() -> None:
    """Without the priority of the process itself, which on a busy machine would never end."""
    found = subprocess.run([sys.executable, "-c", RESTS], capture_output=True, check=True)
    assert int(found.stdout) > 5


@LINUX
def test_where_memory_runs_out_it_goes_first(process: ProofProcess) -> None:
    assert process.run(expression("open('/proc/self/oom_score_adj').read()")) == "1000\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_stops_a_server_stops_no_proof(process: ProofProcess, number: signal.Signals) -> None:
    """A terminal or a service manager may signal every process; the server ends this one."""
    assert process.run(expression(DIES.format(int(number)))) is None


def test_its_errors_are_its_callers_and_tell_where(process: ProofProcess, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing") as failure:
        process.run(partial(sha256_file, tmp_path / "missing"))
    assert "in the process that proves" in failure.value.__notes__[0]
    assert process.run(PID) != os.getpid()


@pytest.mark.parametrize(
    ("number", "error", "told"),
    [
        (signal.SIGSEGV, IntegrityError, r"crashed \(SIGSEGV\)"),
        (signal.SIGABRT, IntegrityError, r"crashed \(SIGABRT\)"),
        (signal.SIGKILL, NotReadyError, "killed, as the system does when memory runs out"),
    ],
)
def test_what_ends_it_is_told_and_ends_nothing_else(
    process: ProofProcess, number: signal.Signals, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        process.run(expression(DIES.format(int(number))))
    assert process.run(PID) != os.getpid()


def test_without_a_process_a_thread_does_it(
    process: ProofProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert process.run(PID) == os.getpid()
    assert "no process can be had" in caplog.text
    assert "/nowhere/python" in caplog.text


@pytest.mark.parametrize("end", ["os._exit(7)", DIES.format(int(signal.SIGSYS))])
def test_a_process_that_cannot_begin_leaves_it_to_a_thread(
    process: ProofProcess, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    here = os.getpid()
    assert process.run(expression(f"None if os.getpid() == {here} else {end}")) is None
    assert "no process can be had" in caplog.text


@LINUX
def test_where_no_core_is_idle_it_begins_anew_with_a_share(
    process: ProofProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_process, "IDLE_S", 0.01)
    answer = process.run(expression(f"time.sleep(1000) if {IS_IDLE} else os.getpid()"))
    assert answer != os.getpid()
    assert process.run(NICENESS) == min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)
    assert process.run(PID) == answer


@pytest.fixture
def no_core_idle() -> Iterator[None]:
    """One core for this test and what it starts, and a process that wants all of it."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    busy.kill()
    busy.wait()
    os.sched_setaffinity(0, cores)


IS_IDLE = f"os.sched_getscheduler(0) == {getattr(os, 'SCHED_IDLE', None)}"


@LINUX
def test_what_starves_begins_anew_with_a_share_long_before_its_time_is_over(
    process: ProofProcess, monkeypatch: pytest.MonkeyPatch, no_core_idle: None
) -> None:
    monkeypatch.setattr(proof_process, "IDLE_S", 1000.0)
    for_a_minute = f"time.monotonic() < {time.monotonic() + 60}"
    process.run(expression(f"all(iter(lambda: {IS_IDLE} and {for_a_minute}, False))"))
    assert process.run(POLICY) == os.SCHED_OTHER
    assert process.run(NICENESS) == min(os.getpriority(os.PRIO_PROCESS, 0) + NICE, 19)


@LINUX
@pytest.mark.parametrize("wants_core", [True, False])
def test_what_waits_for_a_disk_does_not_starve(
    idle: ProofProcess, monkeypatch: pytest.MonkeyPatch, wants_core: bool
) -> None:
    monkeypatch.setattr(CoreTime, "of", lambda _pid: CoreTime(wants_core, 1.0))
    pid = idle.run(PID)
    monkeypatch.setattr(proof_process, "LOOK_S", 0.01)
    waits = f"time.sleep(0.5 if {IS_IDLE} else 0) or os.getpid()"
    assert (idle.run(expression(waits)) != pid) == wants_core


@LINUX
def test_that_no_core_was_idle_is_remembered_for_a_while(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = []
    monkeypatch.setattr(proof_process, "LOOK_S", LIMIT_S)
    monkeypatch.setattr(proof_process, "IDLE_S", 0.01)
    with ProofProcess(background) as process:
        process.run(expression(f"time.sleep(1000 if {IS_IDLE} else 0)"))
    monkeypatch.setattr(proof_process, "IDLE_S", LIMIT_S)
    for _ in range(2):
        with ProofProcess(background) as process:
            policies.append(process.run(POLICY))
        assert background.no_core_idle_until <= time.monotonic() + 60
        background.no_core_idle_until = time.monotonic()
    assert policies == [os.SCHED_OTHER, os.SCHED_IDLE]


def test_what_hangs_is_given_up(process: ProofProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof_process, "IDLE_S", 0.01)
    monkeypatch.setattr(proof_process, "LIMIT_S", 0.02)
    with pytest.raises(NotReadyError, match=r"did not end within 0.02 s"):
        process.run(HANGS)


# Its process is stopped in the middle of its answer, after four bytes for the length and one more.
STOPS = """
import os, signal
from multiprocessing.connection import Connection

def stop(pipe, answer):
    os.write(pipe.fileno(), len(answer).to_bytes(4, "big") + bytes(answer[:1]))
    os.kill(os.getpid(), signal.SIGSTOP)

if {}:
    Connection._send_bytes = stop
"""


@LINUX
def test_what_stops_in_the_middle_of_its_answer_begins_anew(
    idle: ProofProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_process, "ANSWER_S", 0.01)
    stopped = idle.run(PID)
    assert idle.run(partial(exec, STOPS.format(IS_IDLE))) is None
    assert is_gone(stopped)
    assert idle.run(POLICY) == os.SCHED_OTHER


def test_what_always_stops_in_the_middle_of_its_answer_is_given_up(
    process: ProofProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_process, "ANSWER_S", 0.01)
    with pytest.raises(NotReadyError, match=r"stopped for 0.01 s in the middle of its answer"):
        process.run(partial(exec, STOPS.format(True)))
    assert process.run(PID) != os.getpid()


def test_a_piece_that_is_not_taken_is_given_up(
    idle: ProofProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(proof_process, "ANSWER_S", 0.01)
        pid = idle.run(PID)
    os.kill(pid, signal.SIGSTOP)
    assert idle.run(partial(len, bytes(10_000_000))) == 10_000_000
    assert is_gone(pid)


def test_whoever_closes_the_background_waits_for_no_process(
    process: ProofProcess, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof_process, "IDLE_S", 1000.0)
    pid = process.run(PID)
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(process.run, HANGS)
        background.close()
        try:
            with pytest.raises(NotReadyError, match="given up"):
                hanging.result(30)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with pytest.raises(NotReadyError, match="given up"):
        process.run(PID)
    assert is_gone(pid)


def load(repository: Path, background: Background | None) -> ServedModel:
    where = Repository(repository)
    return load_model(where, "news", 1, threads=1, max_batch=2, background=background)


def refuse(*_arguments: Any, **_options: Any) -> Any:
    raise AssertionError("this process proves nothing")


def test_what_answers_is_opened_once_it_is_proven_elsewhere(
    repository: Path, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "check_goldens", refuse)
    model = load(repository, background)
    assert model.scores(model.encode(["bank shares"])).shape == (1, len(model.labels))
    with pytest.raises(AssertionError, match="proves nothing"):
        load(repository, None)


def test_what_the_goldens_refuse_elsewhere_is_never_opened(
    tmp_path: Path, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, path = make_bundle(tmp_path / "other", Recipe(seed=1)), tmp_path / "made" / "news" / "1"
    make_bundle(path)
    (path / "variants" / "fp32.onnx").write_bytes((other / "variants" / "fp32.onnx").read_bytes())
    seal_again(path)
    monkeypatch.setattr(opening.Opening, "sessions", refuse)
    with pytest.raises(IntegrityError, match="golden 0 gets other scores than recorded"):
        load(tmp_path / "made", background)


@pytest.mark.parametrize("name", ["variants/fp32.onnx", "preprocessing/tokenizer.json"])
def test_what_changes_after_its_proof_does_not_answer(
    tmp_path: Path, background: Background, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = make_bundle(tmp_path / "made" / "news" / "1")
    plain = opening.Opening.sessions

    def changed(*arguments: Any) -> Any:
        sessions = plain(*arguments)
        (path / name).write_bytes((path / name).read_bytes() + b" ")
        return sessions

    monkeypatch.setattr(opening.Opening, "sessions", changed)
    with pytest.raises(IntegrityError, match=f"{name} was altered"):
        load(tmp_path / "made", background)


def test_a_library_that_was_upgraded_beside_the_server_proves_nothing(
    repository: Path, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    installed = onnxruntime.__version__
    monkeypatch.setattr(onnxruntime, "__version__", "0.1")
    with pytest.raises(BackendUnavailableError, match=f"onnxruntime {installed} .* runs 0.1"):
        load(repository, background)


@pytest.fixture
def hanging(start: Start, tmp_path: Path, bundle: Path) -> tuple[Process, int]:
    """A server that answers while a version is proven without end, and the id of who does that."""
    where, written = Repository(tmp_path / "repository"), tmp_path / "proof"
    where.publish(bundle, "news")
    options = ("--json", "--watch-seconds", "0.05", "--grace", "1000")
    process = start(
        str(where.path), *FREE_PORTS, *options, without=hanging_proof, PROOF=str(written)
    )
    process.ready()
    where.publish(bundle, "news")
    until(written.exists)
    return process, int(written.read_text())


def test_a_stop_waits_for_no_proof_and_leaves_none(hanging: tuple[Process, int]) -> None:
    process, proof = hanging
    process.popen.terminate()
    assert process.wait() == (0, "", "")
    until(lambda: not is_running(proof))


def test_a_server_that_is_killed_leaves_no_proof(hanging: tuple[Process, int]) -> None:
    process, proof = hanging
    process.popen.kill()
    process.wait()
    until(lambda: not is_running(proof))
