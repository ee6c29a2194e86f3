"""From an ONNX file to an engine: strongly typed, so that the file alone decides the precisions.

An int8 engine comes from a file with explicit QuantizeLinear and DequantizeLinear, an fp16 engine
from a file that was converted; nothing is calibrated here. The calls are those that TensorRT 10 and
11 share, and every None and False that they may give is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from edgewright.backends.tensorrt.library import Messages, messages, reasons, started, tensorrt
from edgewright.backends.tensorrt.profiles import Profile
from edgewright.errors import BackendUnavailableError, ConfigError, IntegrityError

T = TypeVar("T")

WORKSPACE_BYTES: Final = 1 << 30  # scratch memory that one layer may take
FLAGS: Final = "strongly_typed,detailed_verbosity"  # part of an engine's key


@dataclass(frozen=True)
class Built:
    """A serialised engine, and the timings that make the next build faster."""

    engine: bytes
    timing_cache: bytes


def build(
    onnx: Path,
    profiles: Sequence[Profile],
    *,
    workspace_bytes: int = WORKSPACE_BYTES,
    timing_cache: bytes = b"",
) -> Built:
    """Build an engine for this GPU; takes seconds to minutes.

    Args:
        onnx: external data is found beside it.
        profiles: one or more; every input of the network, in each.
        workspace_bytes: scratch memory at most.
        timing_cache: of an earlier build on such a GPU; one that does not fit is left out.

    Raises:
        BackendUnavailableError: TensorRT is missing, or cannot start or build here.
        ConfigError: a profile does not fit the network.
        IntegrityError: TensorRT cannot read the file; tells every node at fault.
    """
    trt = tensorrt()
    told = messages(trt)
    builder = started(trt.Builder, told)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = _made(builder.create_network(flags), "create_network", told)
    _parse(trt.OnnxParser(network, told), onnx)
    config = _made(builder.create_builder_config(), "create_builder_config", told)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # placement reads precisions
    cache = _use_timing_cache(config, timing_cache, told)
    for profile in profiles:
        _add_profile(builder, config, profile, told)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendUnavailableError(f"TensorRT cannot build an engine of {onnx}: {reasons(told)}")
    timings = _made(cache.serialize(), "serialize of the timing cache", told)
    return Built(engine=bytes(plan), timing_cache=bytes(timings))


def _parse(parser: Any, onnx: Path) -> None:
    if parser.parse(onnx.read_bytes(), str(onnx)):
        return
    faults = [_fault(parser.get_error(index)) for index in range(parser.num_errors)]
    raise IntegrityError(
        f"TensorRT cannot read {onnx}: {'; '.join(faults) or 'it does not say why'}"
    )


def _fault(error: Any) -> str:
    """As "node 3 (Einsum /attention/Einsum): unsupported equation"."""
    return f"node {error.node()} ({error.node_operator()} {error.node_name()}): {error.desc()}"


def _use_timing_cache(config: Any, stored: bytes, told: Messages) -> Any:
    """The stored timings or, where they are damaged or another GPU's, none."""
    for content in dict.fromkeys((stored, b"")):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    raise BackendUnavailableError(f"TensorRT takes no timing cache: {reasons(told)}")


def _add_profile(builder: Any, config: Any, profile: Profile, told: Messages) -> None:
    added = _made(builder.create_optimization_profile(), "create_optimization_profile", told)
    try:
        for name, each in profile.ranges.items():
            added.set_shape(name, each.smallest, each.best, each.largest)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"TensorRT refuses the profile {profile}: {error}") from error
    if config.add_optimization_profile(added) < 0:
        raise ConfigError(f"TensorRT refuses the profile {profile}: {reasons(told)}")


def _made(value: T | None, step: str, told: Messages) -> T:
    if value is None:
        raise BackendUnavailableError(f"TensorRT: {step} gave nothing: {reasons(told)}")
    return value
