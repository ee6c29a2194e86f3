"""Images are decoded off the event loop, and count against the queue meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from image_data import digit_image

from edgewright.errors import InputError, OverloadedError
from edgewright.preprocess import ImagePreprocessor, ImageSettings
from edgewright.serve.admission import Limits, Queue
from edgewright.serve.image_decoder import ImageDecoder
from edgewright.serve.prediction_log import LogInputs, PredictionLog


class Model:
    """Decodes, once it may."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.threads: set[str] = set()
        self._preprocessor = ImagePreprocessor(ImageSettings((8, 8), ()))

    def decode(self, images: Sequence[bytes]) -> Any:
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(10)
        return self._preprocessor.encode(images)


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("image") / "1.png"
    digit_image(1).save(path)
    return path.read_bytes()


def test_the_loop_goes_on_while_images_are_decoded_and_a_full_queue_refuses(png: bytes) -> None:
    async def scenario() -> None:
        model, queue = Model(), Queue(4, lambda: 0.01)
        decoder = ImageDecoder(queue, 1)
        first = asyncio.create_task(decoder.decode(model, [png] * 3))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert queue.rows == 3
        with pytest.raises(OverloadedError):
            await decoder.decode(model, [png] * 2)  # type: ignore[arg-type]
        model.gate.set()
        rows = await first
        assert [row.pixels.shape for row in rows] == [(8, 8, 3)] * 3  # type: ignore[attr-defined]
        assert queue.rows == 0
        assert all(name.startswith("decode") for name in model.threads)
        decoder.close()

    asyncio.run(scenario())


def test_a_bad_image_leaves_the_queue_as_it_was(png: bytes) -> None:
    async def scenario() -> None:
        model, queue = Model(), Queue(4, lambda: 0.01)
        model.gate.set()
        decoder = ImageDecoder(queue, 1)
        with pytest.raises(InputError, match=r"images\[1\]"):
            await decoder.decode(model, [png, b"no image"])  # type: ignore[arg-type]
        assert queue.rows == 0
        decoder.close()

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

    from edgewright.serve.batching import Answer

    log = PredictionLog(LogInputs.ALL, lambda _: None)
    log.add(Logged(), ["a"], [None], [Answer([1, 0], [0.9, 0.1], False)])
    (row,) = log.first(1)
    assert (row.prediction_id, row.text, list(row.classes)) == ("a", None, [1, 0])
