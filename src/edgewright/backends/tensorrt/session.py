"""A built engine that answers: one stream, a context for each profile, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import TensorSpec
from edgewright.backends.cuda import this_gpu
from edgewright.backends.placement import Placement
from edgewright.backends.tensorrt.inspection import placement_of
from edgewright.backends.tensorrt.library import messages, reasons, started, tensorrt
from edgewright.backends.tensorrt.memory import Buffer, Stream
from edgewright.backends.tensorrt.profiles import Profile, Range
from edgewright.errors import BackendUnavailableError, InputError, IntegrityError

Shapes = Mapping[str, tuple[int, ...]]
_SMALLEST, _BEST, _LARGEST = range(3)
DYNAMIC: Final = -1


class TensorRtSession:
    """One engine on one GPU; ``run`` may be called from one thread at a time."""

    def __init__(self, engine: bytes, source: str) -> None:
        """``source`` is the ONNX file that it was built from, for messages.

        Raises:
            BackendUnavailableError: TensorRT is missing or cannot start.
            IntegrityError: the bytes are no engine that this TensorRT can load.
        """
        self._trt = trt = tensorrt()
        self._source = source
        self._told = messages(trt)
        self._runtime = started(trt.Runtime, self._told)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise IntegrityError(
                f"TensorRT cannot load the engine of {source}: {reasons(self._told)}; "
                "build it again with `edgewright build-engine`"
            )
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.inputs = tuple(self._specs(names, trt.TensorIOMode.INPUT))
        self.outputs = tuple(self._specs(names, trt.TensorIOMode.OUTPUT))
        self.profiles = tuple(
            self._profile(index) for index in range(self._engine.num_optimization_profiles)
        )
        self._stream = Stream()
        self._contexts = [self._context(index) for index in range(len(self.profiles))]
        self._buffers = {name: Buffer() for name in names}

    def run(
        self, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """One forward pass; every input by name. The outputs named or, without, the first.

        Raises:
            InputError: an input is missing or of another type, or no profile holds the shapes.
            BackendUnavailableError: TensorRT or CUDA refuses; says what.
        """
        inputs = {spec.name: _checked(spec, arrays) for spec in self.inputs}
        context = self._contexts[self._choose({name: a.shape for name, a in inputs.items()})]
        for name, array in inputs.items():
            self._give(context, name, array)
        views = {spec.name: self._prepare(context, spec) for spec in self.outputs}
        wanted = {name: views[name] for name in outputs or (self.outputs[0].name,)}
        if not context.execute_async_v3(self._stream.handle):
            raise self._refused("execute_async_v3")
        for name, view in wanted.items():
            self._stream.to_host(self._buffers[name], view.nbytes)
        self._stream.wait()
        return {name: view.copy() for name, view in wanted.items()}

    @property
    def max_rows(self) -> int:
        """The most rows that one call may hold."""
        return max(each.largest[0] for profile in self.profiles for each in profile.ranges.values())

    def placement(self) -> Placement:
        """What the engine is made of, by its inspector."""
        return placement_of(self._trt, self._engine, str(this_gpu()))

    def _specs(self, names: list[str], mode: Any) -> Iterator[TensorSpec]:
        engine, trt = self._engine, self._trt
        for name in names:
            if engine.get_tensor_mode(name) == mode:
                dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
                yield TensorSpec(name, dtype, tuple(engine.get_tensor_shape(name)))

    def _profile(self, index: int) -> Profile:
        found = {}
        for spec in self.inputs:
            dims = self._engine.get_tensor_profile_shape(spec.name, index)
            found[spec.name] = Range(
                tuple(dims[_SMALLEST]), tuple(dims[_BEST]), tuple(dims[_LARGEST])
            )
        return Profile(found)

    def _context(self, profile: int) -> Any:
        """One for each profile: to change a context's profile would wait for the stream."""
        context = self._engine.create_execution_context()
        if context is None:
            raise self._refused("create_execution_context")
        if not context.set_optimization_profile_async(profile, self._stream.handle):
            raise self._refused(f"set_optimization_profile_async({profile})")
        self._stream.wait()
        return context

    def _choose(self, shapes: Shapes) -> int:
        """The first profile that holds the shapes: they go from the fewest rows to the most."""
        for index, profile in enumerate(self.profiles):
            if profile.holds(shapes):
                return index
        given = ", ".join(f"{name} {'x'.join(map(str, dims))}" for name, dims in shapes.items())
        taken = "; ".join(map(str, self.profiles))
        raise InputError(
            f"{given}: the engine of {self._source} takes SMALLEST,BEST,LARGEST of {taken}"
        )

    def _give(self, context: Any, name: str, array: NDArray[Any]) -> None:
        buffer = self._buffers[name]
        buffer.write(array)
        self._stream.to_device(buffer, array.nbytes)
        if not context.set_input_shape(name, tuple(array.shape)):
            raise self._refused(f"set_input_shape({name}, {array.shape})")
        self._address(context, name)

    def _prepare(self, context: Any, spec: TensorSpec) -> NDArray[Any]:
        """Room for an output; where its values will be on the host's side."""
        shape = tuple(context.get_tensor_shape(spec.name))
        if DYNAMIC in shape:
            raise BackendUnavailableError(
                f"TensorRT cannot tell the shape of {spec.name} of {self._source} from its inputs'"
            )
        dtype = np.dtype(spec.dtype)
        self._buffers[spec.name].reserve(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self._address(context, spec.name)
        return self._buffers[spec.name].view(shape, dtype)

    def _address(self, context: Any, name: str) -> None:
        if not context.set_tensor_address(name, self._buffers[name].device):
            raise self._refused(f"set_tensor_address({name})")

    def _refused(self, step: str) -> BackendUnavailableError:
        return BackendUnavailableError(
            f"TensorRT: {step} failed for {self._source}: {reasons(self._told)}"
        )


def _checked(spec: TensorSpec, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    array = arrays.get(spec.name)
    if array is None:
        raise InputError(f"no input {spec.name}; there are: {', '.join(sorted(arrays))}")
    if array.dtype.name != spec.dtype:
        raise InputError(f"{spec.name} is {array.dtype.name}; {spec.dtype} is expected")
    return array
