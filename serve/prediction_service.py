"""edgewright.v1.PredictionService: raw inputs in, class scores out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgewright.errors import InputError
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.serve.models import ServedModel
from edgewright.serve.predictor import Predicted, Predictor
from edgewright.v1.prediction_pb2 import (
    Classification,
    ClassifyImageRequest,
    ClassifyImageResponse,
    ClassifyTextRequest,
    ClassifyTextResponse,
    ClassScore,
)
from edgewright.v1.prediction_pb2_grpc import PredictionServiceServicer


class PredictionService(PredictionServiceServicer):
    """Words a call for the predictor, and its answers for the caller."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    async def ClassifyText(  # noqa: N802 -- the name in the .proto
        self, request: ClassifyTextRequest, context: Any
    ) -> ClassifyTextResponse:
        """Classify a batch of texts, in order; raises what ``rpc_errors`` maps to a status."""
        model = self._ready(request, TEXT)
        texts, top_k = list(request.texts), request.top_k
        predicted = await self._predictor.texts(model, texts, context.time_remaining(), top_k)
        return ClassifyTextResponse(
            model=model.name,
            version=model.version,
            classifications=classifications(model, predicted, top_k),
        )

    async def ClassifyImage(  # noqa: N802 -- the name in the .proto
        self, request: ClassifyImageRequest, context: Any
    ) -> ClassifyImageResponse:
        """Classify a batch of images, in order; raises as ``ClassifyText``."""
        model = self._ready(request, IMAGE)
        images, top_k = list(request.images), request.top_k
        predicted = await self._predictor.images(model, images, context.time_remaining(), top_k)
        return ClassifyImageResponse(
            model=model.name,
            version=model.version,
            classifications=classifications(model, predicted, top_k),
        )

    def _ready(
        self, request: ClassifyTextRequest | ClassifyImageRequest, kind: Kind
    ) -> ServedModel:
        model = self._predictor.registry.ready(request.model, request.version)
        if model.kind is not kind:
            method = {TEXT: "ClassifyText", IMAGE: "ClassifyImage"}[model.kind]
            raise InputError(
                f"{model.name} classifies {model.kind.many}; call {method}", field="model"
            )
        return model


def classifications(
    model: ServedModel, predicted: Sequence[Predicted], top_k: int
) -> list[Classification]:
    """The answers in words; ``top_k`` 0 gives every class."""
    labels, most = model.labels, top_k or None
    return [
        Classification(
            prediction_id=prediction_id,
            label=labels[answer.classes[0]],
            score=answer.scores[0],
            scores=[
                ClassScore(label=labels[index], score=score)
                for index, score in zip(answer.classes[:most], answer.scores[:most], strict=True)
            ],
            truncated=answer.truncated,
        )
        for prediction_id, answer in predicted
    ]
