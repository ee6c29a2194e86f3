"""A built engine on the GPU: its weights, once, for as many sessions as are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgewright.backends import TensorSpec
from edgewright.backends.cuda import this_gpu
from edgewright.backends.placement import Placement
from edgewright.backends.tensorrt.inspection import placement_of
from edgewright.backends.tensorrt.library import messages, reasons, started, tensorrt
from edgewright.backends.tensorrt.profiles import Profile, Range
from edgewright.backends.tensorrt.stream import Stream
from edgewright.errors import BackendUnavailableError, InputError, IntegrityError

Shapes = Mapping[str, Sequence[int]]
_SMALLEST, _BEST, _LARGEST = range(3)


class Engine:
    """An engine that TensorRT has loaded; its methods may be called from several threads."""

    def __init__(self, content: bytes, source: str) -> None:
        """``source`` is the ONNX file that it was built from, for messages.

        Raises:
            BackendUnavailableError: TensorRT is missing or cannot start.
            IntegrityError: the bytes are no engine that this TensorRT can load.
        """
        self._trt = trt = tensorrt()
        self.source: Final = source
        self._told = messages(trt)
        self._runtime = started(trt.Runtime, self._told)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(content)
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

    def context(self, profile: int, stream: Stream) -> Any:
        """Room to compute in, for the shapes of one profile; used by one thread at a time.

        Contexts of one profile may run at once: TensorRT shares profiles from 10.0 on
        (PreviewFeature.PROFILE_SHARING_0806, which 11 no longer lists).

        Raises:
            BackendUnavailableError: TensorRT refuses, as where the GPU has no such room.
        """
        context = self._engine.create_execution_context()
        if context is None:
            raise self.refused("create_execution_context")
        try:
            with stream.done():
                if not context.set_optimization_profile_async(profile, stream.handle):
                    raise self.refused(f"set_optimization_profile_async({profile})")
        except BaseException:
            del context  # or the traceback would keep it for longer than its stream
            raise
        return context

    def choose(self, shapes: Shapes) -> int:
        """The first profile that holds the shapes: they go from the fewest rows to the most.

        Raises:
            InputError: none does.
        """
        for index, profile in enumerate(self.profiles):
            if profile.holds(shapes):
                return index
        given = ", ".join(f"{name} {'x'.join(map(str, dims))}" for name, dims in shapes.items())
        taken = "; ".join(map(str, self.profiles))
        raise InputError(
            f"{given}: the engine of {self.source} takes SMALLEST,BEST,LARGEST of {taken}"
        )

    def placement(self) -> Placement:
        """What the engine is made of, by its inspector."""
        return placement_of(self._trt, self._engine, str(this_gpu()))

    def refused(self, step: str) -> BackendUnavailableError:
        """The error of a step that TensorRT did not take, with the reasons that it gave."""
        return BackendUnavailableError(
            f"TensorRT: {step} failed for {self.source}: {reasons(self._told)}"
        )

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
