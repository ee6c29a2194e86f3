"""edgewright.v1.ModelService: which models are served, and what is proven of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from edgewright.errors import ModelNotFoundError
from edgewright.serve.models import ServedModel
from edgewright.serve.problems import WHOLE_MODEL, Problems
from edgewright.serve.registry import Entry, Registry, Role, State
from edgewright.v1 import model_pb2
from edgewright.v1.model_pb2_grpc import ModelServiceServicer

_STATES: Final = {
    State.LOADING: model_pb2.MODEL_STATE_LOADING,
    State.READY: model_pb2.MODEL_STATE_READY,
    State.DRAINING: model_pb2.MODEL_STATE_DRAINING,
}


class ModelService(ModelServiceServicer):
    """Words the registry, and what is wrong, for the wire."""

    def __init__(self, registry: Registry, problems: Problems) -> None:
        self._registry = registry
        self._problems = problems

    async def ListModels(  # noqa: N802 -- the name in the .proto
        self, _request: model_pb2.ListModelsRequest, _context: Any
    ) -> model_pb2.ListModelsResponse:
        """Every version, by name; those still loading, and those that failed, too."""
        names = sorted({*self._registry.names(), *self._problems.names()})
        return model_pb2.ListModelsResponse(
            models=[model for name in names for model in self._versions(name)]
        )

    async def GetModel(  # noqa: N802 -- the name in the .proto
        self, request: model_pb2.GetModelRequest, _context: Any
    ) -> model_pb2.GetModelResponse:
        """One version of a model; raises as ``Registry.entry``."""
        try:
            entry = self._registry.entry(request.model, request.version)
        except ModelNotFoundError:
            for model in self._versions(request.model):
                if request.version in (0, model.version):
                    return model_pb2.GetModelResponse(model=model)
            raise
        problem = self._problem(self._problems.of(entry.name), entry)
        return model_pb2.GetModelResponse(model=self._model(entry, problem))

    def _versions(self, name: str) -> list[model_pb2.Model]:
        problems = self._problems.of(name)
        lineup = self._registry.lineup(name)
        entries = lineup.entries() if lineup else []
        told = {each.version for each in entries} | ({WHOLE_MODEL} if entries else set())
        return [
            *(self._model(each, self._problem(problems, each)) for each in entries),
            *(
                model_pb2.Model(
                    name=name, version=version, state=model_pb2.MODEL_STATE_FAILED, problem=problem
                )
                for version, problem in problems.items()
                if version not in told
            ),
        ]

    def _problem(self, problems: Mapping[int, str], entry: Entry) -> str:
        """What is wrong with the version or, where it is the current one, with the whole model."""
        whole = problems.get(WHOLE_MODEL, "") if entry.role is Role.CURRENT else ""
        return problems.get(entry.version, whole)

    def _model(self, entry: Entry, problem: str) -> model_pb2.Model:
        state = _STATES[self._registry.state]
        served, role = entry.served, f"VERSION_ROLE_{entry.role.name}"
        if served is None:
            return model_pb2.Model(
                name=entry.name, version=entry.version, state=state, role=role, problem=problem
            )
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
            role=role,
            problem=problem,
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
