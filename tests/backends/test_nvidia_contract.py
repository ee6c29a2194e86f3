"""What edgewright calls of TensorRT and CUDA is what NVIDIA's own bindings have, 10.1 to 11.

The stand-ins that the other tests run on are the table: all that runs there must be here.
"""

from __future__ import annotations

import ast
import enum
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bindings import Bindings, fetch, tensorrt_bindings
from fake_cuda import FakeCuda, cudaError_t, cudaMemcpyKind
from fake_cuda import functions as cuda_functions
from fake_cuda import names as cuda_names
from fake_tensorrt import FakeTensorRt, make_module, public_methods

import edgewright.backends
from edgewright.backends.cuda import LOST, LOST_AS_DOCUMENTED, LOST_IN_HARDWARE

BACKENDS = Path(edgewright.backends.__file__).parent
SOURCES = [*sorted(BACKENDS.glob("cuda*.py")), *sorted((BACKENDS / "tensorrt").glob("*.py"))]
VERSIONS = [
    ("tensorrt_cu12_bindings", "10.1.0"),
    ("tensorrt_cu12_bindings", "10.16.1.11"),
    ("tensorrt_cu13_bindings", "11.4.0.106"),
]
CUDA_VERSIONS = ["12.8.0", "13.5.0"]
# The bindings' own names for what has another name in Python.
ALIASES = {"IParserError": "ParserError"}
# Set on an object; the stand-in has it as a plain attribute.
SETTABLE = {"IBuilderConfig": {"profiling_verbosity"}}


@pytest.fixture(scope="module", params=VERSIONS, ids="-".join)
def trt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    return tensorrt_bindings(tmp_path_factory.mktemp("tensorrt"), *request.param)


@pytest.fixture(scope="module")
def real(trt: Bindings) -> dict[str, Any]:
    return trt.describe("tensorrt")


@pytest.fixture(scope="module", params=CUDA_VERSIONS)
def cuda(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bindings:
    folder = tmp_path_factory.mktemp("cuda")
    fetch(folder, f"cuda-bindings=={request.param}", "cuda-pathfinder")
    return Bindings(folder, request.param)


def classes() -> dict[str, type]:
    """The stand-in's classes."""
    module = make_module(FakeTensorRt())
    return {name: of for name, of in vars(module).items() if isinstance(of, type)}


def functions() -> Iterator[tuple[str, str, Any]]:
    for name, of in classes().items():
        if not issubclass(of, enum.Enum):
            for method, function in public_methods(of).items():
                yield name, method, function


def constructed(name: str) -> bool:
    """Whether our code makes such objects itself; the others come from a call."""
    return name in ("ILogger", "Builder", "Runtime", "OnnxParser")


def overloads(doc: str) -> list[tuple[list[str], int, str]]:
    """Of each overload: parameters without ``self``, how many it wants, its type's last name."""
    found = []
    for parameters, returned in re.findall(r"\w+\((self: .*)\) -> (.+)$", doc, re.MULTILINE):
        parts = re.findall(r"(\w+): ([^,]+)", re.sub(r"<[^>]*>", "VALUE", parameters))[1:]
        wanted = sum(" = " not in each for _, each in parts)
        name = re.split(r"\.|::", returned)[-1].rstrip("]")
        found.append(([each for each, _ in parts], wanted, name))
    return found


def used(root: str) -> set[str]:
    """Dotted names below a variable, as "MemoryPoolType.WORKSPACE" below ``trt``."""
    found = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                if text.startswith((f"{root}.", f"self._{root}.")):
                    found.add(text.partition(f"{root}.")[2])
    return found


def attributes() -> set[str]:
    """Every attribute that the code reads, calls or sets."""
    trees = [ast.parse(file.read_text()) for file in SOURCES]
    return {
        node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }


def test_the_stand_in_has_what_the_code_uses_and_nothing_else() -> None:
    names = used("trt")
    assert {"Builder", "OnnxParser", "MemoryPoolType.WORKSPACE", "ILogger.Severity.ERROR"} <= names
    module = make_module(FakeTensorRt())
    for dotted in names:
        value: Any = module
        for part in dotted.split("."):
            value = getattr(value, part)
    surplus = [
        f"{name}.{method}"
        for name, method, _ in functions()
        if method != "__init__" and not (name == "ILogger" and method == "log")
        if method not in attributes()
    ]
    assert surplus == []


def test_every_class_and_enum_member_is_real(real: dict[str, Any]) -> None:
    for name, of in classes().items():
        assert name in real, f"tensorrt.{name} is not there"
        if issubclass(of, enum.Enum):
            if name == "DataType" or name == "ProfilingVerbosity":
                continue
            missing = {each.name for each in of} - set(real[name]["members"])
            assert not missing, f"tensorrt.{name} has no {sorted(missing)}"
    assert "DETAILED" in real["ProfilingVerbosity"]["members"]
    severity = set(real["ILogger"]["members"]["Severity"]["members"])
    assert {"INTERNAL_ERROR", "ERROR"} <= severity
    assert "nptype" in real


def test_every_call_has_an_overload_with_these_parameters(real: dict[str, Any]) -> None:
    for name, method, function in functions():
        if method == "__init__" and not constructed(name):
            continue
        members = real[name]["members"]
        assert method in members, f"tensorrt.{name}.{method} is not there"
        if isinstance(function, property):
            assert members[method]["kind"] == "property"
            continue
        told = overloads(members[method]["doc"])
        signature = inspect.signature(function)
        names = list(signature.parameters)[1:]
        matching = [
            returned
            for parameters, wanted, returned in told
            if parameters[: len(names)] == names and wanted <= len(names)
        ]
        assert matching, f"tensorrt.{name}.{method}{tuple(names)}: it has {told}"
        expected = str(signature.return_annotation).removeprefix("list[").rstrip("]")
        if expected in ("None", "bool", "int", "str") or expected in classes():
            returned = {ALIASES.get(each, each) for each in matching}
            assert expected in returned, f"tensorrt.{name}.{method} gives {returned}"


def test_profiles_are_shared_between_contexts_unless_that_is_turned_off(
    trt: Bindings, real: dict[str, Any]
) -> None:
    """So that sessions of one engine may run one profile at once; 11 has no other way left."""
    told = " ".join(real["PreviewFeature"]["doc"].split())
    if trt.version.startswith("10."):
        assert "The default value for this flag is on in TensorRT 10.0" in told
    else:
        assert "PROFILE_SHARING_0806" not in told


def test_what_is_set_can_be_set(real: dict[str, Any]) -> None:
    for name, attributes_set in SETTABLE.items():
        for attribute in attributes_set:
            assert attribute in attributes()
            assert real[name]["members"][attribute]["kind"] == "property"


def test_our_logger_and_our_words_for_a_builder_that_cannot_start(trt: Bindings) -> None:
    """The code itself, on the real bindings: their libraries make nothing."""
    code = """
from edgewright.backends.tensorrt.library import messages, started, tensorrt
from edgewright.errors import BackendUnavailableError
trt = tensorrt()
told = messages(trt)
for make in (trt.Builder, trt.Runtime):
    told.log(trt.ILogger.Severity.ERROR, "an error")
    told.log(trt.ILogger.Severity.VERBOSE, "no error")
    try:
        started(make, told)
    except BackendUnavailableError as error:
        print(error)
print(trt.__version__, 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
print(trt.nptype(trt.DataType.INT64).__name__, trt.nptype(trt.DataType.HALF).__name__)
"""
    lines = trt.run(code).splitlines()
    told = "TensorRT cannot start: an error; check the driver with `nvidia-smi`"
    strong = "2" if trt.version.startswith("10.") else "1"
    assert lines == [told, told, f"{trt.version} {strong}", "int64 float16"]


def test_every_function_of_cuda_is_real_with_these_parameters(cuda: Bindings) -> None:
    described = cuda.describe("cuda.bindings.runtime")
    for name in cuda_functions():
        first_line = described[name]["doc"].strip().splitlines()[0]
        text = re.fullmatch(rf"{name}\((.*)\)", first_line)
        assert text is not None, first_line
        parts = [part.partition(":")[0].split()[-1] for part in text[1].split(", ") if part]
        names = list(inspect.signature(getattr(FakeCuda, name)).parameters)[1:]
        assert parts == names, f"{name}{tuple(names)}: it is {first_line}"
    for kind in (cudaError_t, cudaMemcpyKind):
        assert {each.name for each in kind} <= set(described[kind.__name__]["members"])
    properties = described["cudaDeviceProp"]["members"]
    assert {"name", "major", "minor"} <= set(properties)


def test_every_name_of_cuda_that_the_code_has_is_in_the_stand_in() -> None:
    found = set()
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(node, "attr", getattr(node, "value", ""))
            if isinstance(name, str) and re.fullmatch(r"cuda[A-Z]\w+", name):
                found.add(name)
    members = {each.name for each in (*cudaError_t, *cudaMemcpyKind)}
    assert found - members - LOST - {"cudaError_t", "cudaMemcpyKind"} == set(cuda_names())


def test_every_constant_of_cuda_is_the_real_one(cuda: Bindings) -> None:
    constants = {name for name in cuda_names() if name not in cuda_functions()}
    code = "from cuda.bindings import runtime\n" + "".join(
        f"print(runtime.{name})\n" for name in sorted(constants)
    )
    assert cuda.run(code).split() == [str(getattr(FakeCuda, name)) for name in sorted(constants)]


def test_a_stream_is_a_number_to_tensorrt(cuda: Bindings) -> None:
    code = """
import warnings
from cuda.bindings import runtime
warnings.simplefilter("error")
print(int(runtime.cudaStream_t(5)))
"""
    assert cuda.run(code) == "5\n"


def test_the_errors_after_which_a_process_must_end_are_those_that_cuda_says(cuda: Bindings) -> None:
    assert documented_as_final(cuda) == LOST_AS_DOCUMENTED


def test_errors_of_the_hardware_are_cudas_and_are_lost_too(cuda: Bindings) -> None:
    known = set(cuda.describe("cuda.bindings.runtime")["cudaError_t"]["members"])
    assert known >= LOST_IN_HARDWARE
    assert LOST_AS_DOCUMENTED | LOST_IN_HARDWARE == LOST


def documented_as_final(cuda: Bindings) -> set[str]:
    """Errors of which the bindings say that the process must end; older ones in comments only."""
    source = cuda.folder / "cuda" / "bindings" / "runtime.pyx"
    if source.is_file():
        comments = re.findall(r"((?: +#:.*\n)+) +(\w+) = ", source.read_text())
        documented = {name: comment.replace("#:", "") for comment, name in comments}
    else:
        members = cuda.describe("cuda.bindings.runtime")["cudaError_t"]["members"]
        documented = {name: member["doc"] for name, member in members.items()}
    final = "the process must be terminated and relaunched"
    return {
        name
        for name, text in documented.items()
        if name.startswith("cudaError") and final in " ".join(text.split())
    }


# From 12.9.1 on every function releases the GIL, by the release notes of cuda-bindings.
def test_what_may_wait_releases_the_gil_also_in_the_oldest_bindings(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("oldest")
    fetch(folder, f"cuda-bindings=={CUDA_VERSIONS[0]}")
    source = (folder / "cuda" / "bindings" / "runtime.pyx").read_text()
    bodies = dict(re.findall(r"^def (\w+)\((.*?)(?=^def |\Z)", source, re.MULTILINE | re.DOTALL))
    assert "with nogil" not in bodies["cudaEventSynchronize"]  # so it is not used
    short = {"cudaSetDeviceFlags", "cudaStreamCreateWithFlags", "cudaStreamDestroy"}
    waiting = {
        name for name in cuda_functions() if not name.startswith(("cudaGet", "cudaDriver", "cudaR"))
    }
    holding = {name for name in waiting - short if "with nogil" not in bodies[name]}
    assert holding == set()


def test_the_real_cuda_says_that_there_is_no_gpu_in_our_words(cuda: Bindings) -> None:
    code = """
from edgewright.backends.cuda import this_gpu
from edgewright.errors import BackendUnavailableError
try:
    print("GPU", this_gpu())
except BackendUnavailableError as error:
    print(error)
"""
    told = cuda.run(code)
    if not told.startswith("GPU "):
        pattern = r"no usable NVIDIA GPU here \(CUDA: cudaGetDeviceCount failed.*: .+\)"
        assert re.match(pattern, told), told
