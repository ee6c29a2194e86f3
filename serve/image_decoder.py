"""Image files to pixels, beside the event loop and the compute threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, overload

from edgewright.errors import DeadlineError
from edgewright.preprocess import Row
from edgewright.serve.admission import Queue
from edgewright.serve.call import BatchModel, Call
from edgewright.serve.models import ServedModel
from edgewright.serve.pace import Stage


class ImageDecoder:
    """A few threads that decode; Pillow does it outside of the GIL."""

    def __init__(
        self,
        queue: Queue,
        threads: int,
        observed: Callable[[BatchModel, float], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``queue`` and ``observed`` are told how long decoding takes, in seconds.

        ``clock`` is that of the calls' deadlines.
        """
        self._queue = queue
        self._observed = observed
        self._threads = threads
        self._clock = clock
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def decode(self, model: ServedModel, call: Call) -> list[Row]:
        """Pixels of each image of an admitted call, as ``model`` sees them, in order.

        Raises:
            InputError: names the image that cannot be decoded.
            DeadlineError: its turn came too late, or before the last image nobody waited any more.
        """
        loop = asyncio.get_running_loop()
        rows, started, seconds = await loop.run_in_executor(self._pool, self._decode, model, call)
        self._queue.learn(model, Stage.DECODE, len(rows), seconds, self._threads)
        self._observed(model, seconds)
        call.decode_started, call.decode_s = started, seconds
        return rows

    def close(self) -> None:
        """Let go of the threads; what they are doing is finished, what waits for them is not."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, model: ServedModel, call: Call) -> tuple[list[Row], float, float]:
        started = self._clock()
        rows = model.decode(_WhileWanted(call, self._clock))
        return rows, started, self._clock() - started


class _WhileWanted(Sequence[bytes]):
    """The images of a call; DeadlineError once nobody waits for them any more."""

    def __init__(self, call: Call, clock: Callable[[], float]) -> None:
        self._call = call
        self._clock = clock

    def __len__(self) -> int:
        return len(self._call.inputs)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...

    def __getitem__(self, index: Any) -> Any:
        if not self._call.wanted(self._clock()):
            raise DeadlineError("the deadline passed before the images were decoded")
        return self._call.inputs[index]
