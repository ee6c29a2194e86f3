"""ONNX Runtime's CUDA provider: chosen, or an error; on a stand-in, for want of a GPU."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_cuda import FakeCuda, cudaError_t
from tiny_onnx import fp32_classifier, ids

from edgewright.backends import get_backend, onnxruntime_cuda
from edgewright.backends import onnxruntime as onnxruntime_backend
from edgewright.errors import BackendUnavailableError, GpuLostError, IntegrityError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
STRICT = (
    "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the "
    "default CPU EP, but fallback to CPU EP has been explicitly disabled by the user."
)


@dataclass
class FakeOnnxRuntime:
    """ONNX Runtime as a CUDA build behaves; the CPU computes."""

    on_cpu: list[tuple[str, str]] = field(default_factory=list)  # (type, name) of nodes
    provider: str = CUDA  # that a session gets
    tells: bool = True  # whether it is 1.24 or newer
    loads: list[dict[str, str]] = field(default_factory=list)
    cuda: FakeCuda = field(default_factory=FakeCuda)
    running: Callable[[dict[str, Any]], None] = lambda inputs: None

    def session(
        self, path: str, options: Any, *, providers: list[str], enable_fallback: int
    ) -> Any:
        assert providers == [CUDA]
        assert enable_fallback == 0
        entries = options.entries
        self.loads.append(dict(entries))
        if self.on_cpu and entries["session.disable_cpu_ep_fallback"] == "1":
            raise RuntimeError(STRICT)
        real = onnxruntime.InferenceSession(path, options.real, providers=[CPU])
        assert self.cuda.flags == FakeCuda.cudaDeviceScheduleBlockingSync

        def run(names: list[str], inputs: dict[str, Any]) -> Any:
            self.running(inputs)
            return real.run(names, inputs)

        made = SimpleNamespace(run=run, get_inputs=real.get_inputs, get_outputs=real.get_outputs)
        made.get_providers = lambda: [self.provider, CPU]
        if self.tells:
            made.get_provider_graph_assignment_info = self._told(entries)
        return made

    def _told(self, entries: dict[str, str]) -> Callable[[], list[Any]]:
        if entries.get("session.record_ep_graph_assignment_info") != "1":
            return list
        fallen = [SimpleNamespace(op_type=kind, name=name) for kind, name in self.on_cpu]
        head = [SimpleNamespace(op_type="MatMul", name="/head")]
        return lambda: [
            SimpleNamespace(ep_name=CPU, get_nodes=lambda: fallen),
            SimpleNamespace(ep_name=CUDA, get_nodes=lambda: head),
        ]


class Options:
    """Session options that can be read back."""

    def __init__(self) -> None:
        self.real = onnxruntime.SessionOptions()
        self.entries: dict[str, str] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "optimized_model_filepath":
            self.real.optimized_model_filepath = value


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeOnnxRuntime:
    made = FakeOnnxRuntime()
    made.cuda.install(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    library = SimpleNamespace(
        __version__="1.31.1",
        SessionOptions=Options,
        InferenceSession=made.session,
        get_available_providers=lambda: [CUDA, CPU],
    )
    for module in (onnxruntime_backend, onnxruntime_cuda):
        monkeypatch.setattr(module, "library", lambda *_: library)
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fp32_classifier(tmp_path_factory.mktemp("model") / "fp32.onnx")


def load(model: Path) -> Any:
    return get_backend("onnxruntime-cuda").load(model, threads=1)


def test_a_session_runs_on_the_gpu_alone(fake: FakeOnnxRuntime, model: Path) -> None:
    session = load(model)
    assert [each["session.disable_cpu_ep_fallback"] for each in fake.loads] == ["1"]
    (expected,) = onnxruntime.InferenceSession(str(model), providers=[CPU]).run(None, ids(2, 3))
    np.testing.assert_array_equal(session.run(ids(2, 3))["logits"], expected)
    name = "onnxruntime-cuda 1.31.1 on NVIDIA Fake (compute capability 9.0)"
    assert get_backend("onnxruntime-cuda").runtime() == name


def addresses(inputs: dict[str, Any]) -> dict[str, int]:
    return {name: int(array.ctypes.data) for name, array in inputs.items()}


def test_inputs_are_read_from_pinned_memory_which_is_kept_and_given_back(
    fake: FakeOnnxRuntime, model: Path
) -> None:
    session = load(model)
    seen: list[dict[str, int]] = []

    def look(inputs: dict[str, Any]) -> None:
        seen.append(addresses(inputs))
        for name, array in inputs.items():
            assert fake.cuda.block(seen[-1][name], "pinned", array.nbytes)

    fake.running = look
    for rows in (8, 2):
        # As a caller has them: in whatever order in memory.
        inputs = {name: np.asfortranarray(array) for name, array in ids(rows, 16).items()}
        expected = onnxruntime.InferenceSession(str(model), providers=[CPU]).run(None, inputs)
        np.testing.assert_array_equal(session.run(inputs)["logits"], expected[0])
    assert len(seen[0]) == 2
    assert seen[0] == seen[1]
    del session
    gc.collect()
    assert fake.cuda.memory == {}


def test_instances_share_the_weights_and_run_at_once(fake: FakeOnnxRuntime, model: Path) -> None:
    one, other = get_backend("onnxruntime-cuda").load_instances(model, 2, threads=1)
    assert len(fake.loads) == 1
    both, seen = threading.Barrier(2), list[dict[str, int]]()

    def meet(inputs: dict[str, Any]) -> None:
        seen.append(addresses(inputs))
        both.wait(60)

    fake.running = meet
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(each.run, ids(2, 3, seed=i)) for i, each in enumerate((one, other))]
        answers = [run.result(60)["logits"] for run in runs]
    assert not set(seen[0].values()) & set(seen[1].values())
    for seed, logits in enumerate(answers):
        (expected,) = onnxruntime.InferenceSession(str(model), providers=[CPU]).run(
            None, ids(2, 3, seed=seed)
        )
        np.testing.assert_array_equal(logits, expected)


def test_a_fault_of_the_gpu_is_named_and_any_other_keeps_its_words(
    fake: FakeOnnxRuntime, model: Path
) -> None:
    session = load(model)

    def fail(inputs: dict[str, Any]) -> None:
        raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    fake.running = fail
    with pytest.raises(RuntimeError, match="CUDA failure 700"):
        session.run(ids(1, 4))
    fake.cuda.fault = cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(GpuLostError, match="cudaErrorIllegalAddress: .*start it again"):
        session.run(ids(1, 4))


def test_without_pinned_memory_it_says_so(fake: FakeOnnxRuntime, model: Path) -> None:
    session = load(model)
    fake.cuda.refuse = {"cudaHostAlloc"}
    with pytest.raises(BackendUnavailableError, match="CUDA: cudaHostAlloc failed with "):
        session.run(ids(1, 4))
    fake.cuda.refuse = set()
    assert session.run(ids(1, 4))["logits"].shape == (1, 3)


def test_arithmetic_on_shapes_may_stay_on_the_cpu_and_is_told(
    fake: FakeOnnxRuntime, model: Path
) -> None:
    fake.on_cpu = [("Shape", "/embed"), ("Gather", "/sizes"), ("Concat", "")]
    session = load(model)
    assert [each["session.disable_cpu_ep_fallback"] for each in fake.loads] == ["1", "0"]
    assert session.placement().runtime == "onnxruntime-cuda"
    assert session.placement().devices == {CPU: 1, CUDA: 7}


def test_a_node_that_falls_back_to_the_cpu_is_an_error_that_names_it(
    fake: FakeOnnxRuntime, model: Path
) -> None:
    fake.on_cpu = [("Shape", "/s"), ("MatMulInteger", "/layer.0/key"), ("QAttention", "")]
    told = (
        "CUDA has no kernel for MatMulInteger /layer.0/key, QAttention, which would run on the CPU"
    )
    with pytest.raises(BackendUnavailableError, match=told):
        load(model)


def test_where_onnxruntime_does_not_tell_which_nodes_fell_back_none_may(
    fake: FakeOnnxRuntime, model: Path
) -> None:
    fake.on_cpu, fake.tells = [("Shape", "/s")], False
    with pytest.raises(BackendUnavailableError, match=r"explicitly disabled.*from 1\.24 on"):
        load(model)


def test_another_provider_than_was_asked_for_is_an_error(
    fake: FakeOnnxRuntime, model: Path
) -> None:
    fake.provider = CPU
    with pytest.raises(BackendUnavailableError, match=f"took {CPU} where {CUDA} was asked for"):
        load(model)


def test_a_file_that_is_no_model_is_named(fake: FakeOnnxRuntime, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"garbage")
    with pytest.raises(IntegrityError, match=r"cannot load .*broken\.onnx"):
        load(broken)


def test_the_cpu_build_and_a_host_without_a_gpu_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    told = r"installed without CUDA; in a fresh environment.*edgewright\[serve-gpu\]"
    with pytest.raises(BackendUnavailableError, match=told):
        get_backend("onnxruntime-cuda")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    FakeCuda(devices=0).install(monkeypatch)
    with pytest.raises(BackendUnavailableError, match="no usable NVIDIA GPU here"):
        get_backend("onnxruntime-cuda")


def test_the_installed_onnxruntime_words_its_refusal_as_we_read_it(model: Path) -> None:
    """The one sentence that is read out of an error, from the library itself."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(Exception, match="fallback to CPU EP has been explicitly disabled"):
        onnxruntime.InferenceSession(str(model), options, providers=[], enable_fallback=0)
