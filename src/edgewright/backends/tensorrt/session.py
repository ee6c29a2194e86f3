"""A session of an engine: copies in, computes, copies out, beside other sessions of it.

While one session's stream computes, another's copies its batch in or its answers out: the GPU has
engines for copies of their own, and nothing here waits for another session.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.backends import TensorSpec
from edgewright.backends.cuda import sleep_while_waiting
from edgewright.backends.placement import Placement
from edgewright.backends.tensorrt.engine import Engine
from edgewright.backends.tensorrt.stream import Buffer, Stream
from edgewright.errors import BackendUnavailableError, InputError

DYNAMIC: Final = -1


class TensorRtSession:
    """A stream, contexts and buffers of its own; ``run`` is called from one thread at a time."""

    def __init__(self, engine: Engine) -> None:
        """What it holds goes in reverse order, with the session or where a step here fails.

        Raises:
            BackendUnavailableError, GpuLostError: TensorRT or CUDA refuses; says what.
        """
        sleep_while_waiting()
        self._engine = engine
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.profiles = engine.profiles
        with ExitStack() as held:
            self._stream = Stream(held)
            self._contexts: list[Any] = []
            held.callback(self._contexts.clear)
            # One for each profile: to change a context's profile would wait for the stream.
            for index in range(len(engine.profiles)):
                self._contexts.append(engine.context(index, self._stream))
            tensors = (*self.inputs, *self.outputs)
            self._buffers = {spec.name: Buffer(held) for spec in tensors}
            weakref.finalize(self, held.pop_all().close)

    def another(self) -> TensorRtSession:
        """A session of the same engine, which may run at once with this one.

        Raises:
            BackendUnavailableError, GpuLostError: as for the first.
        """
        return TensorRtSession(self._engine)

    def run(
        self, arrays: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """One forward pass; every input by name. The outputs named or, without, the first.

        Raises:
            InputError: an input is missing or of another type, or no profile holds the shapes.
            BackendUnavailableError: TensorRT or CUDA refuses; says what.
            GpuLostError: a fault has made the GPU unusable to this process.
        """
        inputs = {spec.name: _checked(spec, arrays) for spec in self.inputs}
        context = self._contexts[self._engine.choose({n: a.shape for n, a in inputs.items()})]
        for name, array in inputs.items():
            self._take(context, name, array)
        views = {spec.name: self._make_room(context, spec) for spec in self.outputs}
        wanted = {name: views[name] for name in outputs or (self.outputs[0].name,)}
        with self._stream.done():
            for name, array in inputs.items():
                self._stream.to_device(self._buffers[name], array.nbytes)
            if not context.execute_async_v3(self._stream.handle):
                raise self._engine.refused("execute_async_v3")
            for name, view in wanted.items():
                self._stream.to_host(self._buffers[name], view.nbytes)
        return {name: view.copy() for name, view in wanted.items()}

    @property
    def max_rows(self) -> int:
        """The most rows that one call may hold."""
        return max(each.largest[0] for profile in self.profiles for each in profile.ranges.values())

    def placement(self) -> Placement:
        """What the engine is made of, by its inspector."""
        return self._engine.placement()

    def _take(self, context: Any, name: str, array: NDArray[Any]) -> None:
        """Put an input where it is copied from; nothing is given to the GPU yet."""
        buffer = self._buffers[name]
        buffer.reserve(array.nbytes)
        buffer.host.write(array)
        if not context.set_input_shape(name, tuple(array.shape)):
            raise self._engine.refused(f"set_input_shape({name}, {array.shape})")
        self._address(context, name)

    def _make_room(self, context: Any, spec: TensorSpec) -> NDArray[Any]:
        """Where an output's values will be on the host's side."""
        shape = tuple(context.get_tensor_shape(spec.name))
        if DYNAMIC in shape:
            raise BackendUnavailableError(
                f"TensorRT cannot tell the shape of {spec.name} of {self._engine.source} "
                "from its inputs'"
            )
        dtype = np.dtype(spec.dtype)
        buffer = self._buffers[spec.name]
        buffer.reserve(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self._address(context, spec.name)
        return buffer.host.view(shape, dtype)

    def _address(self, context: Any, name: str) -> None:
        if not context.set_tensor_address(name, self._buffers[name].device.address):
            raise self._engine.refused(f"set_tensor_address({name})")


def _checked(spec: TensorSpec, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    array = arrays.get(spec.name)
    if array is None:
        raise InputError(f"no input {spec.name}; there are: {', '.join(sorted(arrays))}")
    if array.dtype.name != spec.dtype:
        raise InputError(f"{spec.name} is {array.dtype.name}; {spec.dtype} is expected")
    return array
