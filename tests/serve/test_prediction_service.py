from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edgewright.errors import DeadlineError
from edgewright.repository import Repository
from edgewright.serve.admission import Limits
from edgewright.serve.batching import Batcher
from edgewright.serve.call_observer import CallObserver
from edgewright.serve.image_decoder import ImageDecoder
from edgewright.serve.instruments import Instruments
from edgewright.serve.models import load_model
from edgewright.serve.prediction_service import PredictionService
from edgewright.serve.predictor import Predictor
from edgewright.serve.registry import Lineup, Registry, State
from edgewright.v1.prediction_pb2 import ClassifyTextRequest, ClassifyTextResponse

from .compute_fakes import BATCH, QUEUE


class Context:
    """As gRPC gives it, with this much time left."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds

    def time_remaining(self) -> float | None:
        return self.seconds


def classify(repository: Path, seconds: float | None) -> ClassifyTextResponse:
    async def scenario() -> ClassifyTextResponse:
        registry, instruments = Registry(), Instruments()
        model = load_model(Repository(repository), "news", 1, threads=1, max_batch=1)
        registry.put(Lineup("news", 1, {1: model}))
        registry.state = State.READY
        batcher = Batcher(batch=BATCH, limit=QUEUE, observer=instruments)
        decoder = ImageDecoder(batcher.queue, 1, instruments.decoded)
        service = PredictionService(
            Predictor(registry, batcher, Limits(8, 100), instruments, decoder),
            instruments,
            CallObserver(instruments),
        )
        request = ClassifyTextRequest(model="news", texts=["bank"])
        try:
            return await service.ClassifyText(request, Context(seconds))
        finally:
            await batcher.close()

    return asyncio.run(scenario())


def test_the_callers_deadline_reaches_the_batcher(repository: Path) -> None:
    with pytest.raises(DeadlineError):
        classify(repository, 0.0)


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_a_call_with_time_left_or_no_deadline_is_answered(
    repository: Path, seconds: float | None
) -> None:
    assert classify(repository, seconds).classifications
