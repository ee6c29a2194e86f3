"""``edgewright.client.AsyncClient``: what ``Client`` is to threads, to an event loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import grpc.aio

from edgewright.answers import Classification, Embedding, ServedModel
from edgewright.call_inputs import check_several
from edgewright.calls import Calls, Pause, Send, Steps
from edgewright.connection import (
    MAX_MESSAGE_BYTES,
    READY_TIMEOUT_S,
    RETRIES,
    TIMEOUT_S,
    WAIT_TIMEOUT_S,
    Connection,
    Tls,
)
from edgewright.feedback import Acknowledgement, Feedback, FeedbackForm
from edgewright.resumed_stream import ResumedStream, StreamForm
from edgewright.stream_calls import AsyncStreamCall
from edgewright.streamed import ClassifyForm, StreamedAnswer

T = TypeVar("T")


class AsyncClient:
    """Calls a server from one asyncio event loop; arguments, methods and errors are ``Client``'s.

    The channel is opened by the first call, on the loop that makes it.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        tls: Tls | None = None,
        token: str | None = None,
        token_in_clear: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._connection = Connection(
            target, timeout_s, retries, tls, max_message_bytes, clock, token, token_in_clear
        )
        self._calls = Calls(target, retries, rng or random.Random())
        self._sleep = sleep
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}
        self._waiting: set[asyncio.Timeout] = set()  # for the channel
        self._closed = False

    async def classify(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        version: int = 0,
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> list[Classification]:
        """As ``Client.classify``."""
        deadline = self._connection.deadline(timeout_s)
        steps = self._calls.classify(texts, model, version, top_k, deadline)
        return await self._drive(steps)

    async def classify_images(
        self,
        images: bytes | Sequence[bytes],
        *,
        model: str = "",
        version: int = 0,
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> list[Classification]:
        """As ``Client.classify_images``."""
        deadline = self._connection.deadline(timeout_s)
        steps = self._calls.classify_images(images, model, version, top_k, deadline)
        return await self._drive(steps)

    async def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        version: int = 0,
        normalize: bool = False,
        timeout_s: float | None = None,
    ) -> list[Embedding]:
        """As ``Client.embed``."""
        deadline = self._connection.deadline(timeout_s)
        steps = self._calls.embed(texts, model, version, normalize, deadline)
        return await self._drive(steps)

    async def embed_images(
        self,
        images: bytes | Sequence[bytes],
        *,
        model: str = "",
        version: int = 0,
        normalize: bool = False,
        timeout_s: float | None = None,
    ) -> list[Embedding]:
        """As ``Client.embed_images``."""
        deadline = self._connection.deadline(timeout_s)
        steps = self._calls.embed_images(images, model, version, normalize, deadline)
        return await self._drive(steps)

    def stream_classify(
        self,
        items: Iterable[str | bytes] | AsyncIterable[str | bytes],
        *,
        model: str = "",
        version: int = 0,
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncIterator[StreamedAnswer]:
        """As ``Client.stream_classify``, for ``async for``."""
        check_several(items, "items")
        stream = self._stream(ClassifyForm(model, version, top_k), timeout_s)
        call = AsyncStreamCall(
            lambda: self._method("StreamClassify"),
            items,
            self._while_open,
            self._sleep,
            self._connection.clock,
        )
        return call.answers(stream.steps())

    async def list_models(self, *, timeout_s: float | None = None) -> list[ServedModel]:
        """As ``Client.list_models``."""
        deadline = self._connection.deadline(timeout_s)
        return await self._drive(self._calls.list_models(deadline))

    async def get_model(
        self, name: str = "", *, version: int = 0, timeout_s: float | None = None
    ) -> ServedModel:
        """As ``Client.get_model``."""
        deadline = self._connection.deadline(timeout_s)
        return await self._drive(self._calls.get_model(name, version, deadline))

    async def send_feedback(
        self, entries: Feedback | Iterable[Feedback], *, timeout_s: float | None = None
    ) -> list[Acknowledgement]:
        """As ``Client.send_feedback``."""
        deadline = self._connection.deadline(timeout_s)
        return await self._drive(self._calls.send_feedback(entries, deadline))

    def stream_feedback(
        self,
        entries: Iterable[Feedback] | AsyncIterable[Feedback],
        *,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Acknowledgement]:
        """As ``Client.stream_feedback``, for ``async for``."""
        check_several(entries, "entries")
        stream = self._stream(FeedbackForm(), timeout_s)
        call = AsyncStreamCall(
            lambda: self._method("StreamFeedback"),
            entries,
            self._while_open,
            self._sleep,
            self._connection.clock,
        )
        return call.answers(stream.steps())

    async def ready(self, model: str = "", *, timeout_s: float = READY_TIMEOUT_S) -> bool:
        """As ``Client.ready``."""
        deadline = self._connection.deadline(timeout_s)
        return await self._drive(self._calls.ready(model, deadline))

    async def wait_until_ready(self, model: str = "", *, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """As ``Client.wait_until_ready``."""
        deadline = self._connection.deadline(timeout_s)
        await self._drive(self._calls.wait_until_ready(model, deadline))

    async def close(self) -> None:
        """Close the connection; calls in progress end, with ConfigError."""
        if not self._closed:
            self._closed = True
            for each in self._waiting:  # once: what has expired cannot be told so again
                each.reschedule(0)
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _drive(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    response = await self._perform(step)
                except grpc.RpcError as failure:
                    step = steps.throw(failure)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            answer: T = end.value
            return answer

    def _stream(self, form: StreamForm, timeout_s: float | None) -> ResumedStream:
        patience_s = self._connection.deadline(timeout_s).timeout_s
        return ResumedStream(form, self._calls, patience_s, self._connection.clock)

    async def _perform(self, step: Send | Pause) -> Any:
        if isinstance(step, Pause):
            return await self._sleep(step.seconds)
        async with self._while_open():
            return await self._method(step.method)(step.request, timeout=step.timeout_s)

    @asynccontextmanager
    async def _while_open(self) -> AsyncIterator[None]:
        """For what is done with the channel: who waits for it when it is closed is told of that.

        grpc.aio would cancel him, which looks to a TaskGroup as if he had ended well, or leave a
        stream that is not connected yet to wait for ever.
        """
        if self._closed:
            raise self._connection.closed()
        waiting = asyncio.timeout(None)
        self._waiting.add(waiting)
        try:
            async with waiting:
                yield
        except TimeoutError as error:
            if not waiting.expired():
                raise
            raise self._connection.closed() from error
        finally:
            self._waiting.discard(waiting)

    def _method(self, name: str) -> Any:
        if self._channel is None:
            self._channel = self._connection.async_channel()
            self._methods = self._connection.methods(self._channel)
        return self._methods[name]
