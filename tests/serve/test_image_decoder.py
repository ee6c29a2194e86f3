"""Images are decoded off the event loop, while somebody waits for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from image_data import digit_image

from edgewright.errors import DeadlineError, InputError, OverloadedError
from edgewright.preprocess import ImagePreprocessor, ImageSettings
from edgewright.serve.admission import Limits, Queue, QueueLimit
from edgewright.serve.batching import Batcher
from edgewright.serve.call import Answer, Call
from edgewright.serve.image_decoder import ImageDecoder
from edgewright.serve.prediction_log import LogInputs, PredictionLog

from .compute_fakes import BATCH, QUEUE, Observer


class Model:
    """Decodes, once it may, and gives every image the same scores."""

    name = "digits"
    row_by_row = False
    instances = 1

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: set[str] = set()
        self.decoded = 0
        self.on_first: Callable[[], object] = lambda: None
        self._preprocessor = ImagePreprocessor(ImageSettings((8, 8), ()))

    def decode(self, images: Sequence[bytes]) -> Any:
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(60)
        return self._preprocessor.encode(Counted(images, self))

    def cost(self, _given: Any) -> int:
        return 1

    def encode(self, rows: Any) -> Any:
        return rows

    def scores(self, rows: Any) -> Any:
        return np.full((len(rows), 2), 0.5, np.float32)


class Counted(Sequence[bytes]):
    """Images, each of which the model is told of when it is read."""

    def __init__(self, images: Sequence[bytes], model: Model) -> None:
        self._images, self._model = images, model

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: Any) -> Any:
        image = self._images[index]
        self._model.decoded += 1
        if self._model.decoded == 1:
            self._model.on_first()
        return image


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("image") / "1.png"
    digit_image(1).save(path)
    return path.read_bytes()


def call_of(model: Model, images: Sequence[bytes], deadline: float = float("inf")) -> Call:
    future = asyncio.get_running_loop().create_future()
    return Call(model, images, deadline, future)  # type: ignore[arg-type]


def decoder(clock: Callable[[], float] = time.monotonic) -> ImageDecoder:
    return ImageDecoder(Queue(QUEUE), 1, lambda _model, _seconds: None, clock=clock)


def test_the_loop_goes_on_while_images_are_decoded(png: bytes) -> None:
    async def scenario() -> None:
        model, decode = Model(), decoder()
        rows = asyncio.create_task(decode.decode(model, call_of(model, [png] * 3)))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        assert not rows.done()
        model.gate.set()
        assert [row.pixels.shape for row in await rows] == [(8, 8, 3)] * 3  # type: ignore[attr-defined]
        assert all(name.startswith("decode") for name in model.threads)
        decode.close()

    asyncio.run(scenario())


def test_a_bad_image_is_named(png: bytes) -> None:
    async def scenario() -> None:
        model, decode = Model(), decoder()
        model.gate.set()
        with pytest.raises(InputError, match=r"images\[1\]"):
            await decode.decode(model, call_of(model, [png, b"no image"]))  # type: ignore[arg-type]
        decode.close()

    asyncio.run(scenario())


def test_what_expires_behind_the_decoder_is_not_decoded(png: bytes) -> None:
    async def scenario() -> None:
        now = [0.0]
        model, decode = Model(), decoder(lambda: now[0])
        first = asyncio.create_task(decode.decode(model, call_of(model, [png])))  # type: ignore[arg-type]
        late = asyncio.create_task(decode.decode(model, call_of(model, [png], 1.0)))  # type: ignore[arg-type]
        left = asyncio.create_task(decode.decode(model, call_of(model, [png])))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.sleep(0.01)
        now[0] = 1.0
        model.gate.set()
        assert len(await first) == 1
        with pytest.raises(DeadlineError):
            await late
        with pytest.raises(asyncio.CancelledError):
            await left
        decode.close()
        assert model.decoded == 1

    asyncio.run(scenario())


def test_the_rest_of_a_call_is_not_decoded_once_its_caller_has_left(png: bytes) -> None:
    async def scenario() -> None:
        model, decode = Model(), decoder()
        model.gate.set()
        call = call_of(model, [png] * 5)
        model.on_first = lambda: call.future.cancel()
        with pytest.raises(DeadlineError):
            await decode.decode(model, call)  # type: ignore[arg-type]
        decode.close()
        assert model.decoded == 1

    asyncio.run(scenario())


def test_the_queue_counts_images_from_admission_on_and_learns_how_long_they_take(
    png: bytes,
) -> None:
    async def scenario() -> None:
        batcher = Batcher(batch=BATCH, limit=QueueLimit(4, 60.0), observer=Observer())
        decode = ImageDecoder(batcher.queue, 1, lambda _model, _seconds: None)
        model = Model()

        async def prepare(call: Call) -> Sequence[Any]:
            return await decode.decode(model, call)  # type: ignore[arg-type]

        def classify(count: int) -> asyncio.Task[list[Answer]]:
            call = batcher.classify(model, [png] * count, None, prepare=prepare)  # type: ignore[arg-type]
            return asyncio.create_task(call)

        first = classify(3)
        await asyncio.sleep(0.01)
        assert batcher.queue.rows == 3
        with pytest.raises(OverloadedError):
            await classify(2)
        assert batcher.queue.wait_s() == 0
        model.gate.set()
        assert len(await first) == 3
        assert batcher.queue.rows == 0
        second = classify(4)
        await asyncio.sleep(0)
        assert batcher.queue.wait_s() > 0
        await second
        decode.close()
        await batcher.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("images", "field"),
    [([], "images"), ([b"x"] * 4, "images"), ([b"x", b""], "images[1]")],
)
def test_calls_that_no_model_should_be_asked_are_refused(images: list[bytes], field: str) -> None:
    with pytest.raises(InputError) as refusal:
        Limits(max_texts=3, max_text_chars=1).check_images(images, 0, classes=2)
    assert refusal.value.field == field


def test_predictions_without_a_text_are_logged_without_one() -> None:
    class Logged:
        name, version, labels = "digits", 1, ("0", "1")

    log = PredictionLog(LogInputs.ALL, lambda rows, images: None)
    log.add(Logged(), ["a"], [None], [Answer([1, 0], [0.9, 0.1], False)])
    (row,) = log.first(1)
    assert (row.prediction_id, row.text, list(row.classes)) == ("a", None, [1, 0])
