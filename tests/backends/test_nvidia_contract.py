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
from fake_tensorrt import FakeTensorRt, make_module, public_methods

import edgewright.backends

BACKENDS = Path(edgewright.backends.__file__).parent
SOURCES = [BACKENDS / "cuda.py", *sorted((BACKENDS / "tensorrt").glob("*.py"))]
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
told.log(trt.ILogger.Severity.ERROR, "an error")
told.log(trt.ILogger.Severity.VERBOSE, "no error")
for make in (trt.Builder, trt.Runtime):
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
    for name in (each for each in dir(FakeCuda) if each.startswith("cuda")):
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


def test_every_function_of_cuda_that_the_code_calls_is_in_the_stand_in() -> None:
    text = "".join(file.read_text() for file in SOURCES)
    names = set(re.findall(r"\bcuda[A-Z]\w+\b", text)) - {"cudaError_t", "cudaMemcpyKind"}
    members = {each.name for each in (*cudaError_t, *cudaMemcpyKind)}
    assert names - members == {each for each in dir(FakeCuda) if each.startswith("cuda")} - {"cuda"}


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
