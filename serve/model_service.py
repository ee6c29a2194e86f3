"""edgewright.v1.ModelService: which models are served, and what is proven of them."""

from __future__ import annotations

from typing import Any, Final

from edgewright.serve.models import ServedModel
from edgewright.serve.registry import Entry, Registry, State
from edgewright.v1 import model_pb2
from edgewright.v1.model_pb2_grpc import ModelServiceServicer

_STATES: Final = {
    State.LOADING: model_pb2.MODEL_STATE_LOADING,
    State.READY: model_pb2.MODEL_STATE_READY,
    State.DRAINING: model_pb2.MODEL_STATE_DRAINING,
}


class ModelService(ModelServiceServicer):
    """Words the registry for the wire."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def ListModels(  # noqa: N802 -- the name in the .proto
        self, _request: model_pb2.ListModelsRequest, _context: Any
    ) -> model_pb2.ListModelsResponse:
        """Every model, by name; those still loading too."""
        return model_pb2.ListModelsResponse(
            models=[self._model(entry) for entry in self._registry.entries()]
        )

    async def GetModel(  # noqa: N802 -- the name in the .proto
        self, request: model_pb2.GetModelRequest, _context: Any
    ) -> model_pb2.GetModelResponse:
        """One model; raises as ``Registry.entry``."""
        entry = self._registry.entry(request.model, request.version)
        return model_pb2.GetModelResponse(model=self._model(entry))

    def _model(self, entry: Entry) -> model_pb2.Model:
        state = _STATES[self._registry.state]
        served = entry.served
        if served is None:
            return model_pb2.Model(name=entry.name, version=entry.version, state=state)
        return model_pb2.Model(
            name=served.name,
            version=served.version,
            task=served.bundle.task,
            state=state,
            labels=served.labels,
            variant=served.variant.name,
            runtime=served.runtime,
            certificate=_certificate(served),
            manifest_sha256=served.bundle.artifact.manifest_sha256,
            max_length_tokens=served.max_length,
            chosen_variant=served.bundle.chosen.name,
            choice_source=f"CHOICE_SOURCE_{served.chosen_by.name}",
        )


def _certificate(served: ServedModel) -> model_pb2.Certificate:
    proof = served.proof
    verdict = f"VERDICT_{served.verdict}"
    if proof is None:
        return model_pb2.Certificate(verdict=verdict)
    return model_pb2.Certificate(
        verdict=verdict,
        loss_upper_bound=proof.loss_upper_bound,
        budget=proof.budget,
        error_rate=proof.error_rate,
        rows=proof.n,
    )
