"""Copies beside computing: in what order TensorRT and CUDA are called, and what a fault leaves.

On the stand-ins, which do a stream's work when it is waited for, refuse what is asked of them, and
call misuse what a GPU would answer with wrong numbers now and then.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_cuda import FakeCuda, MisuseError, cudaError_t, cudaMemcpyKind
from fake_cuda import functions as cuda_functions
from fake_tensorrt import FakeTensorRt
from tiny_onnx import fp32_classifier, ids

from edgewright.backends import get_backend
from edgewright.backends.tensorrt import TensorRtBackend
from edgewright.backends.tensorrt.session import TensorRtSession
from edgewright.errors import BackendUnavailableError, EdgewrightError, GpuLostError
from edgewright.serve.sessions import Sessions

OPTIONS = {
    "profiles": "attention_mask=1x1,1x8,1x16 input_ids=1x1,1x8,1x16;"
    "attention_mask=1x1,4x8,8x16 input_ids=1x1,4x8,8x16"
}
AT_WORK = ("copy in", "compute", "copy out", "wait")
IN_TIME_S = 60  # for what another thread does; a test that waits longer fails


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorRt]:
    made = FakeTensorRt().install(monkeypatch)
    yield made
    assert not any(made.cuda.streams.values()), "a stream was left with work on it"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fp32_classifier(tmp_path / "fp32.onnx")


@pytest.fixture
def instances(
    tmp_path: Path, fake: FakeTensorRt, model: Path
) -> Callable[[int], list[TensorRtSession]]:
    backend = TensorRtBackend(tmp_path / "engines")
    return lambda count: backend.load_instances(model, count, threads=1, options=OPTIONS)


Instances = Callable[[int], list[TensorRtSession]]


def work(fake: FakeTensorRt) -> list[tuple[Any, ...]]:
    """What was called of streams' work."""
    return [each for each in fake.cuda.log if each[0] in AT_WORK]


def test_a_run_is_given_whole_to_one_stream_and_waited_for_once(
    fake: FakeTensorRt, instances: Instances
) -> None:
    (session,) = instances(1)
    fake.cuda.log.clear()
    session.run(ids(2, 3))
    (stream,) = fake.cuda.streams
    steps = ["copy in", "copy in", "compute", "copy out", "wait"]
    assert work(fake) == [(step, stream) for step in steps]


def test_only_what_is_asked_for_is_copied_out(
    fake: FakeTensorRt, instances: Instances, model: Path
) -> None:
    proto = onnx.load(model)
    proto.graph.node.append(onnx.helper.make_node("Neg", ["logits"], ["negative"]))
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("negative", onnx.TensorProto.FLOAT, ["rows", 3])
    )
    onnx.save(proto, model)
    (session,) = instances(1)
    for asked, copies in (((), 1), (("negative",), 1), (("logits", "negative"), 2)):
        fake.cuda.log.clear()
        found = session.run(ids(2, 3), asked)
        assert list(found) == list(asked or ["logits"])
        assert [each[0] for each in fake.cuda.log].count("copy out") == copies
    np.testing.assert_array_equal(found["negative"], -found["logits"])


def test_instances_share_one_engine_and_nothing_that_a_run_uses(
    fake: FakeTensorRt, instances: Instances, model: Path
) -> None:
    found = instances(3)
    assert fake.engines == 1
    assert len(fake.cuda.streams) == 3
    reference = get_backend("onnxruntime").load(model, threads=1)
    answers = [each.run(ids(2, 3, seed=seed))["logits"] for seed, each in enumerate(found)]
    for seed, logits in enumerate(answers):
        expected = reference.run(ids(2, 3, seed=seed))["logits"]
        np.testing.assert_allclose(logits, expected, atol=1e-6)
    created = {each[2] for each in fake.cuda.log if each[:2] == ("create", "pinned")}
    assert len(created) == 3 * 3  # two inputs and an output, each


def test_one_instance_copies_in_while_another_computes(
    fake: FakeTensorRt, instances: Instances
) -> None:
    sessions = Sessions(instances(2))
    fake.cuda.log.clear()
    computing, go_on = threading.Event(), threading.Event()

    def hold_the_first(stream: int) -> None:
        if not computing.is_set():
            computing.set()
            assert go_on.wait(IN_TIME_S)
            fake.cuda.log.append(("computed", stream))

    fake.while_computing = hold_the_first
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(sessions.run, ids(8, 16))
        assert computing.wait(IN_TIME_S)
        second = pool.submit(sessions.run, ids(2, 3))
        try:
            second.result(IN_TIME_S)
            assert not first.done()
        finally:
            go_on.set()
        first.result(IN_TIME_S)
    order = [each for each in fake.cuda.log if each[0] in (*AT_WORK, "computed")]
    one, other = order[0][1], next(each[1] for each in order if each[1] != order[0][1])
    assert order.index(("compute", one)) < order.index(("copy in", other))
    assert order.index(("copy out", other)) < order.index(("computed", one))


def test_whoever_waits_for_the_gpu_sleeps(fake: FakeTensorRt, instances: Instances) -> None:
    instances(1)
    assert fake.cuda.flags == FakeCuda.cudaDeviceScheduleBlockingSync


def test_a_batch_that_grows_allocates_a_few_times_and_then_never(
    fake: FakeTensorRt, instances: Instances
) -> None:
    (session,) = instances(1)
    for rows in range(1, 9):
        session.run(ids(rows, 16))
    inputs = 2 * 2 * 4  # both sides of two, for 1, 2, 4 and 8 rows
    created = [each for each in fake.cuda.log if each[:1] == ("create",)]
    memory = [each for each in created if each[1] in ("device", "pinned")]
    assert len(memory) <= inputs + 2 * 5  # and the logits, 3 of 4 bytes a row
    fake.cuda.log.clear()
    for rows in range(1, 9):
        session.run(ids(rows, 16))
    assert [each for each in fake.cuda.log if each[0] == "create"] == []


FAILING = sorted(
    {
        *(name for name in cuda_functions() if not name.startswith(("cudaGet", "cudaFree"))),
        "ICudaEngine.create_execution_context",
        "IExecutionContext.set_optimization_profile_async",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_tensor_address",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.get_tensor_shape",
    }
    - {"cudaStreamDestroy", "cudaDeviceSynchronize", "cudaDriverGetVersion"}
    - {"cudaRuntimeGetVersion"}
)


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize("step", FAILING)
def test_what_fails_midway_leaves_nothing_and_what_was_made_goes_in_reverse(
    fake: FakeTensorRt, instances: Instances, step: str, times: int
) -> None:
    """The step fails after so many times that it did not, where it is tried so often."""
    left = [times]

    def fails(name: str) -> bool:
        if name == step:
            left[0] -= 1
        return name == step and left[0] < 0

    failing = Failing(fails)
    fake.refuse, fake.cuda.refuse = failing, failing
    found: list[TensorRtSession] = []
    told = ""
    try:
        found += instances(1)
        for size in ((1, 4), (8, 16)):
            found[0].run(ids(*size))
    except EdgewrightError as error:
        told = str(error)
    tried = left[0] < 0
    assert tried == (step.split(".")[-1] in told or "cannot tell the shape" in told), told
    fake.refuse, fake.cuda.refuse = set(), set()
    assert not any(fake.cuda.streams.values())
    if found:  # a session outlives what failed in it
        assert found[0].run(ids(2, 3))["logits"].shape == (2, 3)
    found.clear()
    gc.collect()
    assert fake.cuda.memory == {}
    assert fake.cuda.streams == {}
    assert went_in_reverse(fake.cuda.log)


class Failing(set[str]):
    """A set of steps that fail, decided each time one is tried."""

    def __init__(self, fails: Callable[[str], bool]) -> None:
        super().__init__()
        self._fails = fails

    def __contains__(self, name: object) -> bool:
        return self._fails(str(name))


def went_in_reverse(log: list[tuple[Any, ...]]) -> bool:
    """Whether memory went before contexts, and these before the stream, of one session."""
    order = ("stream", "context", "device", "pinned")
    alive: list[tuple[Any, ...]] = []
    for event, *what in log:
        if event == "create":
            alive.append(tuple(what))
        elif event == "destroy":
            alive.remove(tuple(what))
            rank = order.index(what[0])
            grows = what[0] in ("device", "pinned")  # so it may go at any time
            if not grows and any(order.index(kind) > rank for kind, _ in alive):
                return False
    return alive == []


def test_a_second_instance_that_cannot_be_had_takes_nothing_with_it(
    fake: FakeTensorRt, instances: Instances
) -> None:
    (one,) = instances(1)
    one.run(ids(1, 4))
    before = dict(fake.cuda.memory)
    fake.contexts_left = 1
    with pytest.raises(BackendUnavailableError, match="create_execution_context failed"):
        one.another()
    gc.collect()
    assert fake.cuda.memory == before
    assert len(fake.cuda.streams) == 1
    assert one.run(ids(8, 16))["logits"].shape == (8, 3)


def test_a_fault_of_the_gpu_is_named_once_and_for_all(
    fake: FakeTensorRt, instances: Instances
) -> None:
    one, other = instances(2)
    one.run(ids(1, 4))
    fake.cuda.fault = cudaError_t.cudaErrorIllegalAddress
    told = (
        "CUDA: cudaStreamSynchronize failed with cudaErrorIllegalAddress: what CUDA says of it; "
        "this process cannot use the GPU any more: start it again"
    )
    with pytest.raises(GpuLostError) as failure:
        one.run(ids(1, 4))
    assert str(failure.value) == told
    assert failure.value.exit_code == 6
    again = [lambda each=each: each.run(ids(1, 4)) for each in (one, other)]
    for run in (*again, one.another, lambda: instances(1)):
        with pytest.raises(GpuLostError, match="cudaErrorIllegalAddress"):
            run()


@pytest.mark.parametrize(
    "fault", [cudaError_t.cudaErrorIllegalAddress, cudaError_t.cudaErrorECCUncorrectable]
)
def test_a_fault_that_tensorrt_notices_first_is_told_as_what_it_is(
    fake: FakeTensorRt, instances: Instances, fault: cudaError_t
) -> None:
    (session,) = instances(1)
    fake.refuse = {"IExecutionContext.execute_async_v3"}
    with pytest.raises(BackendUnavailableError, match="execute_async_v3 failed"):
        session.run(ids(1, 4))
    fake.cuda.fault = fault
    with pytest.raises(GpuLostError, match=fault.name):
        session.run(ids(1, 4))


def misuses(fake: FakeTensorRt, session: TensorRtSession) -> dict[str, Callable[[], object]]:
    """What the stand-in must not let pass, each by one line."""
    cuda = fake.cuda
    stream = cuda.cudaStreamCreateWithFlags(FakeCuda.cudaStreamNonBlocking)
    device, pinned = cuda.cudaMalloc(8), cuda.cudaHostAlloc(8, FakeCuda.cudaHostAllocDefault)
    ordinary = np.zeros(8, np.uint8)
    into_gpu = cudaMemcpyKind.cudaMemcpyHostToDevice
    context = session._contexts[0]

    def changed() -> None:
        cuda.cudaMemcpyAsync(device, pinned, 8, into_gpu, stream)
        cuda.memory[pinned].content[0] += 1
        cuda.cudaStreamSynchronize(stream)

    def given(then: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            cuda.cudaMemcpyAsync(device, pinned, 8, into_gpu, stream)
            then()

        return run

    return {
        "pageable": lambda: cuda.cudaMemcpyAsync(device, ordinary.ctypes.data, 8, into_gpu, stream),
        "too much": lambda: cuda.cudaMemcpyAsync(device, pinned, 9, into_gpu, stream),
        "changed": changed,
        "freed": given(lambda: cuda.cudaFreeHost(pinned)),
        "destroyed": given(lambda: cuda.cudaStreamDestroy(stream)),
        "no addresses": lambda: context.execute_async_v3(stream),
    }


@pytest.mark.parametrize(
    "what", ["pageable", "too much", "changed", "freed", "destroyed", "no addresses"]
)
def test_the_stand_in_lets_no_misuse_pass(
    fake: FakeTensorRt, instances: Instances, what: str
) -> None:
    (session,) = instances(1)
    with pytest.raises(MisuseError):
        misuses(fake, session)[what]()
    fake.cuda.streams = {stream: [] for stream in fake.cuda.streams}


def test_what_is_not_waited_for_is_nonsense_on_the_stand_in(
    fake: FakeTensorRt, instances: Instances, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that waiting for another stream than the run's is seen."""
    one, other = instances(2)
    expected = one.run(ids(1, 4))["logits"]
    monkeypatch.setattr(one._stream, "done", other._stream.done)
    assert not np.array_equal(one.run(ids(1, 4))["logits"], expected)
    fake.cuda.streams = {stream: [] for stream in fake.cuda.streams}
