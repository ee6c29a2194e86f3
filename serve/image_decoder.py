"""Image files to pixels, beside the event loop and the compute thread."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from edgewright.preprocess import Row
from edgewright.serve.admission import Queue
from edgewright.serve.models import ServedModel


class ImageDecoder:
    """A few threads that decode; Pillow does it outside of the GIL.

    Images count as rows that wait while they are decoded, so that a full queue refuses them before
    they cost anything.
    """

    def __init__(self, queue: Queue, threads: int) -> None:
        self._queue = queue
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def decode(self, model: ServedModel, images: Sequence[bytes]) -> list[Row]:
        """Pixels of each image, as ``model`` sees them, in order.

        Raises:
            InputError: names the image that cannot be decoded.
            OverloadedError: the queue is full.
        """
        self._queue.enter(len(images))
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, model.decode, images)
        finally:
            self._queue.leave(len(images))

    def close(self) -> None:
        """Let go of the threads; what they are doing is finished, what waits for them is not."""
        self._pool.shutdown(wait=False, cancel_futures=True)
