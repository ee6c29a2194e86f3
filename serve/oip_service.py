"""inference.GRPCInferenceService: what clients of KServe and Triton call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgewright import __version__
from edgewright.oip import inference_pb2
from edgewright.oip.inference_pb2_grpc import GRPCInferenceServiceServicer
from edgewright.serve.inference import EXTENSIONS, PLATFORM, Inference
from edgewright.serve.model_tensors import array_types, example_type, extra_types, output_types
from edgewright.serve.oip_config import model_config
from edgewright.serve.oip_messages import infer_call, infer_response
from edgewright.serve.registry import Entry, State
from edgewright.serve.tensors import TensorType


class OipService(GRPCInferenceServiceServicer):
    """Words ``Inference`` for the wire."""

    def __init__(
        self, inference: Inference, *, alive: Callable[[], bool], ready: Callable[[], bool]
    ) -> None:
        self._inference = inference
        self._alive = alive
        self._ready = ready

    async def ServerLive(self, _request: Any, _context: Any) -> Any:  # noqa: N802 -- the .proto's
        """Whether the process can answer, now or once it has loaded."""
        return inference_pb2.ServerLiveResponse(live=self._alive())

    async def ServerReady(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Whether every model answers."""
        return inference_pb2.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """Whether one model answers."""
        ready = self._inference.is_model_ready(request.name, request.version)
        return inference_pb2.ModelReadyResponse(ready=ready and self._ready())

    async def ServerMetadata(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """What this is."""
        return inference_pb2.ServerMetadataResponse(
            name=PLATFORM, version=__version__, extensions=EXTENSIONS
        )

    async def ModelMetadata(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """A model's tensors: the example or, in its place, the arrays; raises as ``model``."""
        model = self._inference.model(request.name, request.version)
        return inference_pb2.ModelMetadataResponse(
            name=model.name,
            versions=self._inference.versions(model.name),
            platform=PLATFORM,
            inputs=map(_metadata, [example_type(model), *array_types(model)]),
            outputs=map(_metadata, [*output_types(model), *extra_types(model)]),
        )

    async def ModelInfer(  # noqa: N802
        self, request: inference_pb2.ModelInferRequest, context: Any
    ) -> inference_pb2.ModelInferResponse:
        """Classify; raises as ``Inference.infer``."""
        call = infer_call(request)
        model, tensors = await self._inference.infer(call, context.time_remaining())
        return infer_response(request, model, tensors)

    async def ModelConfig(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """What Triton's tools ask before they call; raises as ``model``."""
        model = self._inference.model(request.name, request.version)
        config = model_config(model, self._inference.max_rows)
        return inference_pb2.ModelConfigResponse(config=config)

    async def RepositoryIndex(self, request: Any, _context: Any) -> Any:  # noqa: N802
        """Every model, or with ``ready`` every one that answers."""
        models = [self._index(entry) for entry in self._inference.registry.entries()]
        if request.ready:
            models = [each for each in models if each.state == "READY"]
        return inference_pb2.RepositoryIndexResponse(models=models)

    def _index(self, entry: Entry) -> inference_pb2.RepositoryIndexResponse.ModelIndex:
        answers = entry.served is not None and self._inference.registry.state is State.READY
        return inference_pb2.RepositoryIndexResponse.ModelIndex(
            name=entry.name,
            version=str(entry.version),
            state="READY" if answers else "UNAVAILABLE",
            reason="" if answers else self._inference.registry.state.value,
        )


def _metadata(each: TensorType) -> inference_pb2.ModelMetadataResponse.TensorMetadata:
    return inference_pb2.ModelMetadataResponse.TensorMetadata(
        name=each.name, datatype=each.datatype, shape=each.shape
    )
