"""edgewright.v1.PredictionService: raw inputs in, class scores out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from edgewright.errors import InputError
from edgewright.kinds import IMAGE, TEXT, Kind
from edgewright.serve.call_observer import CallObserver
from edgewright.serve.classify_stream import MESSAGES_AHEAD, ItemClassifier
from edgewright.serve.instruments import Instruments
from edgewright.serve.models import ServedModel
from edgewright.serve.ordered_stream import OrderedStream
from edgewright.serve.prediction_words import embeddings, write
from edgewright.serve.predictor import Predicted, Predictor
from edgewright.v1.prediction_pb2 import (
    ClassifyImageRequest,
    ClassifyImageResponse,
    ClassifyTextRequest,
    ClassifyTextResponse,
    EmbedImageRequest,
    EmbedImageResponse,
    EmbedTextRequest,
    EmbedTextResponse,
    StreamClassifyRequest,
    StreamClassifyResponse,
)
from edgewright.v1.prediction_pb2_grpc import PredictionServiceServicer

Classified = TypeVar("Classified", ClassifyTextResponse, ClassifyImageResponse)
Embedded = TypeVar("Embedded", EmbedTextResponse, EmbedImageResponse)


class PredictionService(PredictionServiceServicer):
    """Words a call for the predictor, and its answers for the caller."""

    def __init__(
        self, predictor: Predictor, instruments: Instruments, observer: CallObserver
    ) -> None:
        self._predictor = predictor
        self._items = ItemClassifier(predictor, instruments)
        self._draining = asyncio.Event()
        self._stream = OrderedStream(self._draining, MESSAGES_AHEAD, observer)

    def drain(self) -> None:
        """Read no further messages; streams answer what they have read, and end."""
        self._draining.set()

    async def ClassifyText(  # noqa: N802 -- the name in the .proto
        self, request: ClassifyTextRequest, context: Any
    ) -> ClassifyTextResponse:
        """Classify a batch of texts, in order; raises what ``rpc_errors`` maps to a status."""
        model = self._ready(request, TEXT)
        texts, top_k = list(request.texts), request.top_k
        predicted = await self._predictor.texts(model, texts, context.time_remaining(), top_k)
        return _classified(ClassifyTextResponse, model, predicted, top_k)

    async def ClassifyImage(  # noqa: N802 -- the name in the .proto
        self, request: ClassifyImageRequest, context: Any
    ) -> ClassifyImageResponse:
        """Classify a batch of images, in order; raises as ``ClassifyText``."""
        model = self._ready(request, IMAGE)
        images, top_k = list(request.images), request.top_k
        predicted = await self._predictor.images(model, images, context.time_remaining(), top_k)
        return _classified(ClassifyImageResponse, model, predicted, top_k)

    async def EmbedText(  # noqa: N802 -- the name in the .proto
        self, request: EmbedTextRequest, context: Any
    ) -> EmbedTextResponse:
        """What the head reads of each text, in order; raises as ``ClassifyText``."""
        return await self._embed(request, request.texts, TEXT, context, EmbedTextResponse)

    async def EmbedImage(  # noqa: N802 -- the name in the .proto
        self, request: EmbedImageRequest, context: Any
    ) -> EmbedImageResponse:
        """The same of each image."""
        return await self._embed(request, request.images, IMAGE, context, EmbedImageResponse)

    async def StreamClassify(  # noqa: N802 -- the name in the .proto
        self, requests: AsyncIterator[StreamClassifyRequest], context: Any
    ) -> AsyncIterator[StreamClassifyResponse]:
        """Classify what comes, message by message; raises as ``ItemClassifier.answer``."""
        async with aclosing(
            self._stream.answers(requests, lambda request: self._items.answer(request, context))
        ) as answers:
            async for response in answers:
                yield response

    async def _embed(
        self,
        request: Any,
        inputs: Sequence[Any],
        kind: Kind,
        context: Any,
        response: Callable[..., Embedded],
    ) -> Embedded:
        model = self._ready(request, kind, "Embed")
        answers = await self._predictor.embed(model, list(inputs), context.time_remaining())
        vectors = embeddings(answers, normalize=request.normalize)
        return response(
            model=model.name,
            version=model.version,
            dimension=len(vectors[0].values),
            embeddings=vectors,
        )

    def _ready(self, request: Any, kind: Kind, verb: str = "Classify") -> ServedModel:
        model = self._predictor.registry.route(request.model, request.version)
        if model.kind is not kind:
            method = verb + {TEXT: "Text", IMAGE: "Image"}[model.kind]
            raise InputError(f"{model.name} reads {model.kind.many}; call {method}", field="model")
        return model


def _classified(
    response: Callable[..., Classified],
    model: ServedModel,
    predicted: Sequence[Predicted],
    top_k: int,
) -> Classified:
    message = response(model=model.name, version=model.version)
    for each in predicted:
        write(message.classifications.add(), model, each, top_k)
    return message
