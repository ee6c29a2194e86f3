"""edgewright.v1.PredictionService: raw inputs in, class scores out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from edgewright.errors import InputError
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.serve.admission import Limits
from edgewright.serve.batching import Batcher
from edgewright.serve.call import Answer
from edgewright.serve.image_decoder import ImageDecoder
from edgewright.serve.instruments import Instruments
from edgewright.serve.models import ServedModel
from edgewright.serve.prediction_ids import PredictionIds
from edgewright.serve.prediction_log import PredictionLog
from edgewright.serve.registry import Registry
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
    """Checks a call, has its texts or images computed among others', and words the answer."""

    def __init__(
        self,
        registry: Registry,
        batcher: Batcher,
        limits: Limits,
        ids: PredictionIds,
        instruments: Instruments,
        log: PredictionLog | None = None,
        *,
        decoder: ImageDecoder,
    ) -> None:
        self._registry = registry
        self._batcher = batcher
        self._limits = limits
        self._ids = ids
        self._instruments = instruments
        self._log = log
        self._decoder = decoder

    async def ClassifyText(  # noqa: N802 -- the name in the .proto
        self, request: ClassifyTextRequest, context: Any
    ) -> ClassifyTextResponse:
        """Classify a batch of texts, in order; raises what ``rpc_errors`` maps to a status."""
        model = self._ready(request, TEXT)
        texts = list(request.texts)
        self._limits.check(texts, request.top_k, len(model.labels))
        answers = await self._batcher.classify(model, texts, context.time_remaining())
        return ClassifyTextResponse(
            model=model.name,
            version=model.version,
            classifications=self._answered(model, texts, answers, request.top_k),
        )

    async def ClassifyImage(  # noqa: N802 -- the name in the .proto
        self, request: ClassifyImageRequest, context: Any
    ) -> ClassifyImageResponse:
        """Classify a batch of images, in order; raises as ``ClassifyText``."""
        model = self._ready(request, IMAGE)
        images = list(request.images)
        self._limits.check_images(images, request.top_k, len(model.labels))
        decode = partial(self._decoder.decode, model)
        answers = await self._batcher.classify(
            model, images, context.time_remaining(), prepare=decode
        )
        unlogged = [None] * len(images)
        return ClassifyImageResponse(
            model=model.name,
            version=model.version,
            classifications=self._answered(model, unlogged, answers, request.top_k),
        )

    def _ready(
        self, request: ClassifyTextRequest | ClassifyImageRequest, kind: Kind
    ) -> ServedModel:
        model = self._registry.ready(request.model, request.version)
        if model.kind is not kind:
            method = {TEXT: "ClassifyText", IMAGE: "ClassifyImage"}[model.kind]
            raise InputError(
                f"{model.name} classifies {model.kind.many}; call {method}", field="model"
            )
        return model

    def _answered(
        self,
        model: ServedModel,
        texts: Sequence[str | None],
        answers: Sequence[Answer],
        top_k: int,
    ) -> list[Classification]:
        """The answers in words, counted and logged."""
        classifications = self._classifications(model, answers, top_k)
        for each in classifications:
            self._instruments.predicted(model.name, each.label).inc()
        if self._log is not None:
            ids = [each.prediction_id for each in classifications]
            self._log.add(model, ids, texts, answers)
        return classifications

    def _classifications(
        self, model: ServedModel, answers: Sequence[Answer], top_k: int
    ) -> list[Classification]:
        labels, most = model.labels, top_k or None
        return [
            Classification(
                prediction_id=prediction_id,
                label=labels[answer.classes[0]],
                score=answer.scores[0],
                scores=[
                    ClassScore(label=labels[index], score=score)
                    for index, score in zip(
                        answer.classes[:most], answer.scores[:most], strict=True
                    )
                ],
                truncated=answer.truncated,
            )
            for prediction_id, answer in zip(self._ids.take(len(answers)), answers, strict=True)
        ]
