"""A TensorRT without a GPU: its engines hold the ONNX file, and ONNX Runtime computes.

Every class, member and parameter has the name that the real bindings give it;
tests/test_tensorrt_contract.py holds the two against each other, so that what runs here is what may
be called there. ``refuse`` names what gives None, False or -1, as "Builder.create_network".
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from fake_cuda import FakeCuda, MisuseError
from onnx import TensorProto

_MAGIC = b"fake engine\n"
_TYPES = {
    TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.INT64: "INT64",
    TensorProto.INT32: "INT32", TensorProto.INT8: "INT8",
}  # fmt: skip
_NUMPY = {
    "FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32, "INT8": np.int8,
}  # fmt: skip


@dataclass
class FakeTensorRt:
    """One TensorRT on one GPU, and how often it was asked to build."""

    version: str = "11.4.0.106"
    cuda: FakeCuda = field(default_factory=FakeCuda)
    refuse: set[str] = field(default_factory=set)
    unsupported: set[str] = field(default_factory=set)  # types of ONNX nodes
    builds: int = 0
    warm_builds: int = 0  # with the timing cache of an earlier one
    engines: int = 0  # that were loaded
    contexts_left: float = float("inf")  # that there is room for
    while_computing: Callable[[int], None] = lambda stream: None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
        """Take the place of tensorrt and cuda-python."""
        monkeypatch.setitem(sys.modules, "tensorrt", make_module(self))
        self.cuda.install(monkeypatch)
        return self

    def gives(self, step: str, value: Any, otherwise: Any = None) -> Any:
        """``value``, unless ``step`` is refused."""
        return otherwise if step in self.refuse else value


def make_module(fake: FakeTensorRt) -> Any:
    """The module ``tensorrt``, as far as edgewright uses it."""
    strong = 1 if fake.version.startswith("10") else 0

    class NetworkDefinitionCreationFlag(enum.IntEnum):
        STRONGLY_TYPED = strong

    class MemoryPoolType(enum.IntEnum):
        WORKSPACE = 0

    class ProfilingVerbosity(enum.IntEnum):
        LAYER_NAMES_ONLY = 0
        DETAILED = 2

    class LayerInformationFormat(enum.IntEnum):
        JSON = 1

    class TensorIOMode(enum.IntEnum):
        INPUT = 1
        OUTPUT = 2

    DataType = enum.IntEnum("DataType", list(_NUMPY))

    def nptype(trt_type: Any) -> Any:
        return _NUMPY[trt_type.name]

    class ILogger:
        class Severity(enum.Enum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2
            INFO = 3
            VERBOSE = 4

        def __init__(self) -> None: ...

        def log(self, severity: Severity, msg: str) -> None: ...

    def tell(logger: ILogger, text: str) -> None:
        logger.log(ILogger.Severity.INFO, "nothing to worry about")
        logger.log(ILogger.Severity.ERROR, text)

    class IHostMemory:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def __bytes__(self) -> bytes:
            return self._content

    class ParserError:
        def __init__(self, index: int, node: Any, desc: str) -> None:
            self._index, self._node, self._desc = index, node, desc

        def node(self) -> int:
            return self._index

        def node_name(self) -> str:
            return str(self._node.name)

        def node_operator(self) -> str:
            return str(self._node.op_type)

        def desc(self) -> str:
            return self._desc

    class INetworkDefinition:
        content = b""

    class IOptimizationProfile:
        def __init__(self) -> None:
            self._shapes: dict[str, Any] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            if "IOptimizationProfile.set_shape" in fake.refuse or len(min) != len(max):
                raise ValueError("shapes of different ranks")
            self._shapes[input] = [list(min), list(opt), list(max)]

    class ITimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> IHostMemory:
            return fake.gives("ITimingCache.serialize", IHostMemory(b"timings of " + _host(fake)))

    class IBuilderConfig:
        def __init__(self, logger: ILogger) -> None:
            self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
            self._logger, self._profiles = logger, list[Any]()
            self._cache: Any = None
            self._workspace = 0

        def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
            assert pool is MemoryPoolType.WORKSPACE
            assert pool_size >= 1 << 20
            self._workspace = pool_size

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
            content = bytes(serialized_timing_cache)
            sound = content == b"" or content.startswith(b"timings of ")
            made = ITimingCache(content) if sound else None
            return fake.gives("IBuilderConfig.create_timing_cache", made)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            fits = cache._content in (b"", b"timings of " + _host(fake))
            if fits or ignore_mismatch:
                self._cache = cache
            return fake.gives("IBuilderConfig.set_timing_cache", fits or ignore_mismatch, False)

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self._profiles.append(profile._shapes)
            return fake.gives(
                "IBuilderConfig.add_optimization_profile", len(self._profiles) - 1, -1
            )

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            self._network, self._logger, self._errors = network, logger, list[ParserError]()

        def parse(self, model: bytes, path: str) -> bool:
            try:
                graph = onnx.load_model_from_string(bytes(model)).graph
            except Exception:
                nothing = onnx.NodeProto()
                self._errors = [ParserError(-1, nothing, "failed to parse the ONNX model")]
                return False
            self._errors = [
                ParserError(index, node, "no importer registered")
                for index, node in enumerate(graph.node)
                if node.op_type in fake.unsupported
            ]
            self._network.content = bytes(model)
            return fake.gives("OnnxParser.parse", not self._errors, False)

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            if "Builder" in fake.refuse:
                tell(logger, "CUDA initialization failure with error 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            assert flags == 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            return fake.gives("Builder.create_network", INetworkDefinition())

        def create_builder_config(self) -> IBuilderConfig:
            return fake.gives("Builder.create_builder_config", IBuilderConfig(self._logger))

        def create_optimization_profile(self) -> IOptimizationProfile:
            return fake.gives("Builder.create_optimization_profile", IOptimizationProfile())

        def build_serialized_network(
            self, network: INetworkDefinition, config: IBuilderConfig
        ) -> IHostMemory:
            assert config.profiling_verbosity is ProfilingVerbosity.DETAILED
            fake.builds += 1
            fake.warm_builds += bool(config._cache._content)
            inputs = {each.name for each in _graph(network.content).input}
            missing = [name for each in config._profiles for name in inputs - set(each)]
            if missing or not config._profiles:
                tell(self._logger, f"no profile for {', '.join(sorted(missing) or sorted(inputs))}")
                return None  # type: ignore[return-value]
            if "Builder.build_serialized_network" in fake.refuse:
                tell(self._logger, "could not find any implementation for node MatMul")
                return None  # type: ignore[return-value]
            head = json.dumps({"host": _host(fake).decode(), "profiles": config._profiles})
            return IHostMemory(_MAGIC + head.encode() + b"\n" + network.content)

    class EngineInspector:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def get_engine_information(self, format: LayerInformationFormat) -> str:
            assert format is LayerInformationFormat.JSON
            integers = any(node.op_type == "QuantizeLinear" for node in _graph(self._content).node)
            kind = "Int8 format" if integers else "FP32 format"
            return json.dumps(
                {
                    "Layers": [
                        {"Name": "/q", "LayerType": "Quantize", "Inputs": []},
                        {
                            "Name": "/product + /bias",
                            "LayerType": "gemm",
                            "Inputs": [{"Format/Datatype": kind}],
                        },
                        "a layer of which only the name is told",
                    ]
                }
            )

    class IExecutionContext:
        def __init__(self, session: Any, profiles: list[Any]) -> None:
            self._session, self._profiles = session, profiles
            self._profile: Any = None
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._addresses: dict[str, int] = {}
            self._at_work = False
            fake.cuda.log.append(("create", "context", id(self)))
            weakref.finalize(self, fake.cuda.log.append, ("destroy", "context", id(self)))

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            self._profile = self._profiles[profile_index]
            fake.cuda.do(stream_handle, lambda: None)
            return fake.gives("IExecutionContext.set_optimization_profile_async", True, False)

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self._refuse_at_work()
            low, _, high = self._profile[name]
            fits = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
            self._shapes[name] = shape
            return fake.gives("IExecutionContext.set_input_shape", fits, False)

        def get_tensor_shape(self, name: str) -> Any:
            if "IExecutionContext.get_tensor_shape" in fake.refuse:
                return (-1, 3)
            zeros = {
                each.name: np.zeros(self._shapes[each.name], _dtype(each.type))
                for each in self._session.get_inputs()
            }
            (output,) = self._session.run([name], zeros)
            return output.shape

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._refuse_at_work()
            fake.cuda.block(memory, "device")
            self._addresses[name] = memory
            return fake.gives("IExecutionContext.set_tensor_address", True, False)

        def execute_async_v3(self, stream_handle: int) -> bool:
            self._refuse_at_work()
            tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
            missing = [each.name for each in tensors if each.name not in self._addresses]
            if missing:
                raise MisuseError(f"the work was given before the addresses of {missing}")
            if not fake.gives("IExecutionContext.execute_async_v3", True, False):
                return False
            self._at_work = True
            shapes, context = dict(self._shapes), weakref.ref(self)
            fake.cuda.log.append(("compute", stream_handle))

            def compute() -> None:
                alive = context()
                if alive is None:
                    raise MisuseError("a context was destroyed before its work was done")
                fake.while_computing(stream_handle)
                alive._execute(shapes)

            def ended() -> None:
                if (alive := context()) is not None:
                    alive._at_work = False

            fake.cuda.do(stream_handle, compute, *self._addresses.values(), ended=ended)
            return True

        def _refuse_at_work(self) -> None:
            if self._at_work:
                raise MisuseError("a context was changed while its work was not done")

        def _execute(self, shapes: dict[str, tuple[int, ...]]) -> None:
            arrays = {}
            for each in self._session.get_inputs():
                dtype = np.dtype(_dtype(each.type))
                size = int(np.prod(shapes[each.name])) * dtype.itemsize
                fake.cuda.block(self._addresses[each.name], "device", size)
                content = ctypes.string_at(self._addresses[each.name], size)
                arrays[each.name] = np.frombuffer(content, dtype).reshape(shapes[each.name])
            names = [each.name for each in self._session.get_outputs()]
            for name, array in zip(names, self._session.run(names, arrays), strict=True):
                fake.cuda.block(self._addresses[name], "device", array.nbytes)
                ctypes.memmove(self._addresses[name], array.tobytes(), array.nbytes)

    class ICudaEngine:
        def __init__(self, content: bytes, profiles: list[Any]) -> None:
            self._content, self._profiles = content, profiles
            graph = _graph(content)
            self._tensors = [*graph.input, *graph.output]
            self._inputs = {each.name for each in graph.input}
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )

        @property
        def num_io_tensors(self) -> int:
            return len(self._tensors)

        @property
        def num_optimization_profiles(self) -> int:
            return len(self._profiles)

        def get_tensor_name(self, index: int) -> str:
            return str(self._tensors[index].name)

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return DataType[_TYPES[self._tensor(name).elem_type]]

        def get_tensor_shape(self, name: str) -> Any:
            return [each.dim_value or -1 for each in self._tensor(name).shape.dim]

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
            return list(self._profiles[profile_index][name])

        def create_execution_context(self) -> IExecutionContext:
            fake.contexts_left -= 1
            if fake.contexts_left < 0 or "ICudaEngine.create_execution_context" in fake.refuse:
                return None  # type: ignore[return-value]
            return IExecutionContext(self._session, self._profiles)

        def create_engine_inspector(self) -> EngineInspector:
            return EngineInspector(self._content)

        def _tensor(self, name: str) -> Any:
            return next(each for each in self._tensors if each.name == name).type.tensor_type

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            if "Runtime" in fake.refuse:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine:
            content = bytes(serialized_engine)
            head, _, model = content.removeprefix(_MAGIC).partition(b"\n")
            record = json.loads(head) if content.startswith(_MAGIC) else {"host": ""}
            if record["host"] != _host(fake).decode():
                tell(self._logger, "the engine was built for another TensorRT or GPU")
                return None  # type: ignore[return-value]
            made = ICudaEngine(model, record["profiles"])
            fake.engines += 1
            return fake.gives("Runtime.deserialize_cuda_engine", made)

    module = ModuleType("tensorrt")
    for name, value in list(locals().items()):
        if isinstance(value, type) or name == "nptype":
            setattr(module, name, value)
    module.__version__ = fake.version  # type: ignore[attr-defined]
    return module


def public_methods(of: type) -> dict[str, Callable[..., Any]]:
    """The methods and properties of a fake's class, ``__init__`` included where it is its own."""
    kept = (name for name in vars(of) if not name.startswith("_") or name == "__init__")
    return {name: vars(of)[name] for name in kept if not isinstance(vars(of)[name], type | bytes)}


def _host(fake: FakeTensorRt) -> bytes:
    return f"{fake.version} {fake.cuda.name} {fake.cuda.capability}".encode()


def _graph(content: bytes) -> Any:
    return onnx.load_model_from_string(content).graph


def _dtype(ort_type: str) -> Any:
    return {
        "tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16,
    }[ort_type]  # fmt: skip
