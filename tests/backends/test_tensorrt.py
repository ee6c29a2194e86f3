"""TensorRT's control flow, on a stand-in that answers with real numbers and can refuse anything."""

from __future__ import annotations

import gc
import inspect
import logging
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_cuda import FakeCuda
from fake_cuda import functions as cuda_functions
from fake_tensorrt import FakeTensorRt, make_module, public_methods
from onnx import TensorProto
from tiny_onnx import fp32_classifier, ids, int8_classifier

from edgewright.backends import TensorSpec, get_backend
from edgewright.backends.placement import Role, computed_in_float
from edgewright.backends.tensorrt import TensorRtBackend
from edgewright.backends.tensorrt.builder import build
from edgewright.backends.tensorrt.engine_cache import EngineCache
from edgewright.backends.tensorrt.profiles import format_profiles, parse_profiles
from edgewright.errors import (
    BackendUnavailableError,
    ConfigError,
    EdgewrightError,
    InputError,
    IntegrityError,
)

ONE = "attention_mask=1x1,1x8,1x16 input_ids=1x1,1x8,1x16"
MANY = "attention_mask=1x1,4x8,8x16 input_ids=1x1,4x8,8x16"
OPTIONS = {"profiles": f"{ONE};{MANY}"}


@pytest.fixture(params=["10.1.0", "11.4.0.106"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return FakeTensorRt(str(request.param)).install(monkeypatch)


@pytest.fixture
def backend(tmp_path: Path, fake: FakeTensorRt) -> TensorRtBackend:
    return TensorRtBackend(tmp_path / "engines")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return int8_classifier(tmp_path / "int8.onnx")


def on_cpu(model: Path, inputs: dict[str, Any]) -> Any:
    """Q and DQ as they are defined, not fused."""
    options = {"session.disable_quant_qdq": "1"}
    return get_backend("onnxruntime").load(model, threads=1, options=options).run(inputs)["logits"]


@pytest.mark.parametrize("write", [fp32_classifier, int8_classifier])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 16), (3, 5), (8, 16)])
def test_an_engine_gives_the_files_own_numbers(
    tmp_path: Path, backend: TensorRtBackend, write: Any, rows: int, length: int
) -> None:
    model = write(tmp_path / "model.onnx")
    session = backend.load(model, threads=1, options=OPTIONS)
    inputs = ids(rows, length)
    answer = session.run(inputs)
    assert list(answer) == ["logits"]
    np.testing.assert_allclose(answer["logits"], on_cpu(model, inputs), atol=1e-6)


def test_a_session_tells_what_goes_in_and_out_and_its_answers_are_the_callers_to_keep(
    backend: TensorRtBackend, model: Path
) -> None:
    session = backend.load(model, threads=1, options=OPTIONS)
    assert session.inputs == (
        TensorSpec("input_ids", "int64", (-1, -1)),
        TensorSpec("attention_mask", "int64", (-1, -1)),
    )
    assert session.max_rows == 8
    assert session.outputs == (TensorSpec("logits", "float32", (-1, 3)),)
    sizes = [(8, 16), (2, 3), (8, 16), (1, 2)]
    inputs = [ids(*size, seed=index) for index, size in enumerate(sizes)]
    kept = [session.run(each)["logits"] for each in inputs]
    for each, logits in zip(inputs, kept, strict=True):
        np.testing.assert_allclose(logits, on_cpu(model, each), atol=1e-6)


def test_half_precision_inputs_and_outputs_keep_their_type(
    tmp_path: Path, backend: TensorRtBackend
) -> None:
    model = fp32_classifier(tmp_path / "fp16.onnx")
    proto = onnx.load(model)
    proto.graph.node.append(
        onnx.helper.make_node("Cast", ["logits"], ["half"], to=TensorProto.FLOAT16)
    )
    proto.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("half", TensorProto.FLOAT16, ["rows", 3])
    )
    onnx.save(proto, model)
    session = backend.load(model, threads=1, options=OPTIONS)
    assert session.outputs[0].dtype == "float16"
    assert session.run(ids(2, 3))["half"].dtype == np.float16


def test_the_runtime_is_named_with_version_and_gpu(backend: TensorRtBackend, fake: Any) -> None:
    expected = f"tensorrt {fake.version} on NVIDIA Fake (compute capability 9.0)"
    assert backend.runtime() == expected
    assert get_backend("tensorrt").runtime() == expected


def test_each_shape_runs_on_the_first_profile_that_holds_it(
    backend: TensorRtBackend, model: Path
) -> None:
    session = backend.load(model, threads=1, options=OPTIONS)
    assert [str(each) for each in session.profiles] == [ONE, MANY]
    for shape, expected in (((1, 16), 0), ((2, 1), 1)):
        assert (
            session._engine.choose(dict.fromkeys(("input_ids", "attention_mask"), shape))
            == expected
        )


@pytest.mark.parametrize("shape", [(9, 1), (1, 17), (0, 4)])
def test_a_shape_beyond_every_profile_is_refused_by_name(
    backend: TensorRtBackend, model: Path, shape: tuple[int, int]
) -> None:
    session = backend.load(model, threads=1, options=OPTIONS)
    size = "x".join(map(str, shape))
    told = f"input_ids {size}, attention_mask {size}: the engine of {re.escape(str(model))} takes"
    with pytest.raises(InputError, match=told):
        session.run(ids(*shape))


def test_an_input_that_is_missing_or_of_another_type_is_named(
    backend: TensorRtBackend, model: Path
) -> None:
    session = backend.load(model, threads=1, options=OPTIONS)
    with pytest.raises(InputError, match="no input input_ids; there are: words"):
        session.run({"words": np.zeros((1, 1))})
    with pytest.raises(InputError, match="input_ids is float64; int64 is expected"):
        session.run({**ids(1, 1), "input_ids": np.zeros((1, 1))})


def test_a_second_load_takes_the_engine_that_was_built(
    backend: TensorRtBackend, model: Path, fake: FakeTensorRt
) -> None:
    assert backend.load_built(model, OPTIONS) is None
    for _ in range(2):
        backend.load(model, threads=1, options=OPTIONS)
    assert fake.builds == 1
    assert backend.load_built(model, OPTIONS) is not None


CHANGES = {
    "tensorrt": lambda fake, options: setattr(fake, "version", "10.16.1.11"),
    "gpu": lambda fake, options: setattr(fake.cuda, "name", "NVIDIA Other"),
    "compute_capability": lambda fake, options: setattr(fake.cuda, "capability", (8, 9)),
    "driver": lambda fake, options: setattr(fake.cuda, "driver", 13030),
    "profiles": lambda fake, options: options.update(profiles=MANY),
    "flags": lambda fake, options: options.update(workspace_mib="64"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_what_no_longer_fits_is_built_again_from_the_file_and_said_so(
    backend: TensorRtBackend,
    model: Path,
    fake: FakeTensorRt,
    field: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend.load(model, threads=1, options=OPTIONS)
    options = dict(OPTIONS)
    CHANGES[field](fake, options)
    fake.install(monkeypatch)
    assert backend.load_built(model, options) is None
    session = backend.load(model, threads=1, options=options)
    assert fake.builds == 2
    assert f"the engine of {model} is of {field} " in caplog.text
    np.testing.assert_allclose(
        session.run(ids(1, 4))["logits"], on_cpu(model, ids(1, 4)), atol=1e-6
    )


def test_another_file_and_other_external_data_are_other_engines(
    backend: TensorRtBackend, model: Path
) -> None:
    keys = [backend.key(model, OPTIONS)]
    for suffix in (".data", "_data"):
        model.with_name(model.name + suffix).write_bytes(b"weights")
        keys.append(backend.key(model, OPTIONS))
    model.with_name(model.name + ".data").write_bytes(b"other weights")
    keys.append(backend.key(model, OPTIONS))
    fp32_classifier(model)
    keys.append(backend.key(model, OPTIONS))
    assert len({key.digest for key in keys}) == len(keys)
    assert {key.timing_digest for key in keys} == {keys[0].timing_digest}


@pytest.mark.parametrize("damage", [b"", b"fake engine\nnonsense"])
@pytest.mark.parametrize("suffix", [".engine", ".json"])
def test_a_damaged_engine_is_never_loaded_but_built_again(
    backend: TensorRtBackend,
    model: Path,
    fake: FakeTensorRt,
    damage: bytes,
    suffix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend.load(model, threads=1, options=OPTIONS)
    (file,) = backend.cache.folder.glob(f"*{suffix}")
    file.write_bytes(damage)
    assert backend.load_built(model, OPTIONS) is None
    assert f"{file} is damaged" in caplog.text
    backend.load(model, threads=1, options=OPTIONS)
    assert fake.builds == 2


def test_an_engine_that_tensorrt_rejects_in_spite_of_its_key_is_built_again(
    backend: TensorRtBackend, model: Path, fake: FakeTensorRt, caplog: pytest.LogCaptureFixture
) -> None:
    backend.load(model, threads=1, options=OPTIONS)
    fake.refuse = {"Runtime.deserialize_cuda_engine"}
    with pytest.raises(IntegrityError, match="cannot be read back"):
        backend.load(model, threads=1, options=OPTIONS)
    assert "build it again with `edgewright build-engine`" in caplog.text


def test_timings_of_earlier_builds_are_used_where_they_are_this_gpus(
    backend: TensorRtBackend, model: Path, fake: FakeTensorRt
) -> None:
    backend.load(model, threads=1, options=OPTIONS)
    backend.load(model, threads=1, options={"profiles": ONE})
    assert (fake.builds, fake.warm_builds) == (2, 1)
    (timings,) = backend.cache.folder.glob("timing-*.cache")
    for unusable in (b"timings of another GPU", b"garbage"):
        timings.write_bytes(unusable)
        (engine,) = {backend.key(model, OPTIONS).digest}
        (backend.cache.folder / f"{engine}.json").unlink()
        backend.load(model, threads=1, options=OPTIONS)
    assert (fake.builds, fake.warm_builds) == (4, 1)
    assert timings.read_bytes().startswith(f"timings of {fake.version}".encode())


# Every step that the stand-in may refuse, read from its own source.
STEPS = sorted(
    {
        given or asked
        for given, asked in re.findall(
            r'gives\(\s*"([\w.]+)"|"([\w.]+)" in fake\.refuse', inspect.getsource(make_module)
        )
    }
)


def test_every_call_that_may_give_none_or_false_is_among_the_steps() -> None:
    module = make_module(FakeTensorRt())
    classes = {name: of for name, of in vars(module).items() if isinstance(of, type)}
    fallible = {
        f"{name}.{method}"
        for name, of in classes.items()
        for method, function in public_methods(of).items()
        if inspect.isfunction(function)
        and inspect.signature(function).return_annotation in {"bool", *classes}
    }
    # Asked only of what is there: an error by its index, a tensor by its name, an engine.
    certain = {
        "OnnxParser.get_error", "ICudaEngine.get_tensor_mode",
        "ICudaEngine.create_engine_inspector",
    }  # fmt: skip
    assert fallible - certain <= set(STEPS)
    assert len(STEPS) > len(fallible)


@pytest.mark.parametrize("step", STEPS)
def test_every_none_and_false_is_an_error_that_says_which(
    backend: TensorRtBackend, model: Path, fake: FakeTensorRt, step: str
) -> None:
    fake.refuse = {step}
    with pytest.raises(EdgewrightError) as failure:
        backend.load(model, threads=1, options=OPTIONS).run(ids(1, 4))
    assert "TensorRT" in str(failure.value) or "cannot be read back" in str(failure.value)
    assert failure.value.exit_code in (2, 4, 5)
    fake.refuse = set()
    backend.load(model, threads=1, options=OPTIONS).run(ids(1, 4))


CUDA_CALLS = sorted(
    each
    for each in cuda_functions()
    if not each.startswith(("cudaGetError", "cudaFree", "cudaStreamDestroy", "cudaDeviceSync"))
)


@pytest.mark.parametrize("function", CUDA_CALLS)
def test_every_error_of_cuda_is_told_with_its_function_and_name(
    backend: TensorRtBackend, model: Path, fake: FakeTensorRt, function: str
) -> None:
    fake.cuda.refuse = {function}
    told = f"CUDA: {function} failed with cudaErrorMemoryAllocation: what CUDA says of it"
    with pytest.raises(BackendUnavailableError, match=re.escape(told)):
        backend.load(model, threads=1, options=OPTIONS).run(ids(1, 4))
    fake.cuda.refuse = set()


def test_every_node_that_tensorrt_cannot_read_is_named(
    backend: TensorRtBackend, model: Path, fake: FakeTensorRt
) -> None:
    fake.unsupported = {"QuantizeLinear", "MatMul"}
    with pytest.raises(IntegrityError) as failure:
        backend.load(model, threads=1, options=OPTIONS)
    assert str(failure.value) == (
        f"TensorRT cannot read {model}: node 7 (QuantizeLinear /q): no importer registered; "
        "node 10 (MatMul /head.0): no importer registered"
    )


@pytest.mark.parametrize("content", [b"garbage", b"\x08\x08" + b"\xff" * 100])
def test_a_file_that_is_no_model_is_named(
    tmp_path: Path, backend: TensorRtBackend, content: bytes
) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(
        IntegrityError, match=r"cannot read .*broken\.onnx: node -1 .*failed to parse"
    ):
        backend.load(path, threads=1, options=OPTIONS)


def test_a_profile_that_leaves_an_input_out_is_told(backend: TensorRtBackend, model: Path) -> None:
    options = {"profiles": "words=1x1,1x2,1x3"}
    with pytest.raises(BackendUnavailableError, match="no profile for attention_mask, input_ids"):
        backend.load(model, threads=1, options=options)


def test_every_wrong_option_is_told_at_once(backend: TensorRtBackend, model: Path) -> None:
    with pytest.raises(ConfigError) as failure:
        backend.load(model, threads=1, options={"precision": "int8", "workspace_mib": "0"})
    assert len(failure.value.faults) == 3
    with pytest.raises(ConfigError) as failure:
        backend.load(
            model, threads=1, options={"profiles": "input_ids=1x1,9x9,2x2 b=1x1 =1,1,1;a=1x1,1,1"}
        )
    assert len(failure.value.faults) == 4
    with pytest.raises(ConfigError, match="one of them names no input"):
        backend.load(model, threads=1, options={"profiles": f"{ONE};"})


def test_profiles_are_read_as_they_are_written() -> None:
    text = (
        "a=1x1,2x3,4x5 pixels=1x3x8x8,2x3x8x8,4x3x8x8;a=1x1,1x1,1x1 pixels=1x3x8x8,1x3x8x8,1x3x8x8"
    )
    assert format_profiles(parse_profiles(text)) == text


def test_memory_and_streams_are_given_back_with_the_session(
    backend: TensorRtBackend, model: Path, fake: FakeTensorRt
) -> None:
    session = backend.load(model, threads=1, options=OPTIONS)
    session.run(ids(1, 4))
    small = len(fake.cuda.memory)
    session.run(ids(8, 16))
    first = set(fake.cuda.memory)
    assert len(first) == small  # what has grown has given back what it was
    session.run(ids(1, 4, seed=1))
    assert set(fake.cuda.memory) == first  # a warm session allocates nothing
    assert len(first) == 6  # two inputs and an output, on both sides
    del session
    gc.collect()
    assert fake.cuda.memory == {}
    assert fake.cuda.streams == {}


def test_placement_is_the_inspectors(backend: TensorRtBackend, model: Path, tmp_path: Path) -> None:
    placement = backend.load(model, threads=1, options=OPTIONS).placement()
    assert placement.integer_products == 1
    assert placement.left(Role.QUANTIZE) == 1
    assert placement.fused == {"gemm": 1}
    assert placement.devices == {"NVIDIA Fake (compute capability 9.0)": 2}
    assert computed_in_float(placement) is None
    in_float = fp32_classifier(tmp_path / "fp32.onnx")
    placement = backend.load(in_float, threads=1, options=OPTIONS).placement()
    assert placement.float_products == {"fp32": 1}
    assert "tensorrt computes it in float" in str(computed_in_float(placement))


def test_without_a_gpu_or_its_libraries_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def told() -> str:
        with pytest.raises(BackendUnavailableError) as failure:
            get_backend("tensorrt")
        assert failure.value.exit_code == 5
        return str(failure.value)

    install = "run `pip install 'edgewright[serve-gpu]'` on a host with an NVIDIA GPU"
    FakeTensorRt(cuda=FakeCuda(devices=0)).install(monkeypatch)
    assert told().startswith("no usable NVIDIA GPU here (CUDA: cudaGetDeviceCount failed with ")
    assert install in told()
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert "cuda-python is not installed" in told()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert told().startswith("TensorRT cannot be loaded (")
    assert install in told()


@pytest.mark.parametrize("version", ["8.6.1", "10.0.1", "12.0.0"])
def test_a_version_that_is_not_spoken_is_refused(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    FakeTensorRt(version).install(monkeypatch)
    with pytest.raises(BackendUnavailableError, match=f"TensorRT {version} is installed, and"):
        get_backend("tensorrt")


def test_what_is_no_error_goes_to_the_log(
    model: Path, fake: FakeTensorRt, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refuse = {"Builder.build_serialized_network"}
    caplog.set_level(logging.DEBUG)
    told = "cannot build an engine of .*: could not find any implementation for node MatMul$"
    with pytest.raises(BackendUnavailableError, match=told):
        build(model, parse_profiles(ONE))
    assert "nothing to worry about" in caplog.text


def test_an_empty_cache_needs_no_folder(
    tmp_path: Path, backend: TensorRtBackend, model: Path
) -> None:
    cache, key = EngineCache(tmp_path / "none"), backend.key(model, OPTIONS)
    assert cache.engine(key) is None
    assert cache.timing_cache(key) == b""
    assert cache.mismatch(key) == ()
    assert not cache.folder.exists()
