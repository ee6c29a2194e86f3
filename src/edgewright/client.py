"""The client SDK: texts or images in, classifications out.

    with Client("localhost:8001") as client:
        for answer in client.classify(["Shares rose 4%", "United won"], model="news"):
            print(answer.label, answer.score)

        client.classify_images(Path("cat.jpg").read_bytes(), model="pets")

``AsyncClient`` is the same with ``async with`` and ``await``. Every method has a deadline, which
covers its retries too. Retried, with growing and randomised pauses, are UNAVAILABLE, a full queue
that says when to come back, and a call that the server's gRPC dropped unseen; nothing else.

A client may be shared by threads (an ``AsyncClient``, by the tasks of one event loop). It does not
survive ``fork``: gRPC's threads stay behind, so make the client in the child.
"""

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
    Iterator,
    Sequence,
)
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import grpc
import grpc.aio

from edgewright.answers import (
    Classification,
    ClassScore,
    Embedding,
    ModelState,
    ServedCertificate,
    ServedModel,
)
from edgewright.calls import Calls, Pause, Send, Steps, check_range
from edgewright.connection import Connection, Tls
from edgewright.feedback import Acknowledgement, AckStatus, Feedback, FeedbackForm
from edgewright.resumed_stream import AsyncStreamCall, ResumedStream, StreamCall, StreamForm
from edgewright.streamed import ClassifyForm, StreamedAnswer
from edgewright.v1 import feedback_pb2_grpc, model_pb2_grpc, prediction_pb2_grpc

__all__ = [
    "AckStatus",
    "Acknowledgement",
    "AsyncClient",
    "ClassScore",
    "Classification",
    "Client",
    "Embedding",
    "Feedback",
    "ModelState",
    "ServedCertificate",
    "ServedModel",
    "StreamedAnswer",
    "Tls",
]

TIMEOUT_S: Final = 30.0
RETRIES: Final = 4
MAX_MESSAGE_BYTES: Final = 64 << 20
READY_TIMEOUT_S: Final = 5.0
WAIT_TIMEOUT_S: Final = 60.0

T = TypeVar("T")


class Client:
    """Calls a server from threads.

    Args:
        target: "HOST:PORT", or any gRPC name ("dns:///replicas:8001"); calls go round robin over
            the addresses behind it.
        timeout_s: a call's deadline in seconds, its retries included, where the call names none.
        retries: attempts after the first.
        tls: how to encrypt; without it the connection is in the clear.
        token: what the server knows the caller by; never shown or logged.
        token_in_clear: let the token go to another machine without ``tls``.
        max_message_bytes: largest response taken.
        clock, sleep, rng: where seconds, waiting and chance come from.

    Every method raises an ``EdgewrightError``: ModelNotFoundError, InputError, NotReadyError (also
    when no server answers), OverloadedError, DeadlineError,
    UnauthenticatedError, PermissionDeniedError, or what else ``rpc_errors`` maps.
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
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._connection = Connection(
            target, timeout_s, retries, tls, max_message_bytes, clock, token, token_in_clear
        )
        self._calls = Calls(target, retries, rng or random.Random())
        self._sleep = sleep
        self._channel = self._connection.channel()
        self._methods = _methods(self._channel, self._connection.metadata)

    def classify(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        version: int = 0,
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> list[Classification]:
        """Classify a text or several; one answer for each, in their order.

        A long list goes in several requests, one after the other, under one deadline.

        Args:
            texts: at least one, none empty.
            model: may be left out when the server holds just one.
            version: 0 is the current one.
            top_k: how many classes to return for each text; 0 is all.
            timeout_s: deadline in seconds, in place of the client's.
        """
        deadline = self._connection.deadline(timeout_s)
        steps = self._calls.classify(_listed(texts), model, version, top_k, deadline)
        return self._drive(steps)

    def classify_images(
        self,
        images: bytes | Sequence[bytes],
        *,
        model: str = "",
        version: int = 0,
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> list[Classification]:
        """Classify an image file or several, given as bytes; otherwise as ``classify``.

        Args:
            images: whole files: PNG, JPEG, WebP, BMP, GIF or TIFF.
            model, version, top_k, timeout_s: as in ``classify``.
        """
        deadline = self._connection.deadline(timeout_s)
        steps = self._calls.classify_images(_images(images), model, version, top_k, deadline)
        return self._drive(steps)

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: str = "",
        version: int = 0,
        normalize: bool = False,
        timeout_s: float | None = None,
    ) -> list[Embedding]:
        """The vectors that the model's head reads of a text or several, in their order.

        InputError where the model gives none. A long list goes in several requests.

        Args:
            normalize: scale each to the length 1, so that a dot product is a cosine.
            texts, model, version, timeout_s: as in ``classify``.
        """
        deadline = self._connection.deadline(timeout_s)
        steps = self._calls.embed(_listed(texts), model, version, normalize, deadline)
        return self._drive(steps)

    def embed_images(
        self,
        images: bytes | Sequence[bytes],
        *,
        model: str = "",
        version: int = 0,
        normalize: bool = False,
        timeout_s: float | None = None,
    ) -> list[Embedding]:
        """As ``embed``, of an image file or several, given as bytes."""
        deadline = self._connection.deadline(timeout_s)
        steps = self._calls.embed_images(_images(images), model, version, normalize, deadline)
        return self._drive(steps)

    def stream_classify(
        self,
        items: Iterable[str | bytes],
        *,
        model: str = "",
        version: int = 0,
        top_k: int = 0,
        timeout_s: float | None = None,
    ) -> Iterator[StreamedAnswer]:
        """Classify many small items: an answer for each, in their order, as they come.

        ``items``, texts or the bytes of image files, is read ahead, 64 a message and a few messages
        at a time, as the iterator is advanced. A bad item has its own error, and the rest goes on.
        Where the connection breaks, what was not answered is sent again. ``timeout_s`` bounds, in
        place of the client's, how long nothing may be answered before the error is raised.
        """
        form = _classify_form(model, version, top_k)
        stream = _stream(form, self._calls, self._connection, timeout_s)
        call = StreamCall(self._methods["StreamClassify"], iter(items), self._sleep)
        return call.answers(stream.steps())

    def list_models(self, *, timeout_s: float | None = None) -> list[ServedModel]:
        """Every model that the server holds."""
        deadline = self._connection.deadline(timeout_s)
        return self._drive(self._calls.list_models(deadline))

    def get_model(
        self, name: str = "", *, version: int = 0, timeout_s: float | None = None
    ) -> ServedModel:
        """One model; the name may be left out when the server holds just one."""
        deadline = self._connection.deadline(timeout_s)
        return self._drive(self._calls.get_model(name, version, deadline))

    def send_feedback(
        self, entries: Feedback | Iterable[Feedback], *, timeout_s: float | None = None
    ) -> list[Acknowledgement]:
        """Have a few entries stored; what became of each, in their order, once it is durable.

        Sending an entry again does no harm: its ``entry_id`` makes it a DUPLICATE.
        """
        deadline = self._connection.deadline(timeout_s)
        return self._drive(self._calls.send_feedback(_feedback_list(entries), deadline))

    def stream_feedback(
        self, entries: Iterable[Feedback], *, timeout_s: float | None = None
    ) -> Iterator[Acknowledgement]:
        """Have many entries stored: an acknowledgement for each, in their order, as they come.

        ``entries`` is read ahead, 64 a message and a few messages at a time, as the iterator is
        advanced. Where the connection breaks, what was not acknowledged is sent again; what had
        been stored all the same comes back as a DUPLICATE. ``timeout_s`` bounds, in place of the
        client's, how long nothing may be acknowledged before the error is raised.
        """
        stream = _stream(FeedbackForm(), self._calls, self._connection, timeout_s)
        call = StreamCall(self._methods["StreamFeedback"], iter(entries), self._sleep)
        return call.answers(stream.steps())

    def ready(self, model: str = "", *, timeout_s: float = READY_TIMEOUT_S) -> bool:
        """Whether the model (every model, where none is named) answers now; tried once."""
        deadline = self._connection.deadline(timeout_s)
        return self._drive(self._calls.ready(model, deadline))

    def wait_until_ready(self, model: str = "", *, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """Return once ``ready``; NotReadyError, which says why, when it is not in time."""
        deadline = self._connection.deadline(timeout_s)
        self._drive(self._calls.wait_until_ready(model, deadline))

    def close(self) -> None:
        """Close the connection; calls in progress are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _drive(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    response = self._perform(step)
                except grpc.RpcError as failure:
                    step = steps.throw(failure)
                else:
                    step = steps.send(response)
        except StopIteration as end:
            answer: T = end.value
            return answer

    def _perform(self, step: Send | Pause) -> Any:
        if isinstance(step, Pause):
            return self._sleep(step.seconds)
        return self._methods[step.method](step.request, timeout=step.timeout_s)


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
        steps = self._calls.classify(_listed(texts), model, version, top_k, deadline)
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
        steps = self._calls.classify_images(_images(images), model, version, top_k, deadline)
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
        steps = self._calls.embed(_listed(texts), model, version, normalize, deadline)
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
        steps = self._calls.embed_images(_images(images), model, version, normalize, deadline)
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
        form = _classify_form(model, version, top_k)
        stream = _stream(form, self._calls, self._connection, timeout_s)
        call = AsyncStreamCall(lambda: self._method("StreamClassify"), items, self._sleep)
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
        return await self._drive(self._calls.send_feedback(_feedback_list(entries), deadline))

    def stream_feedback(
        self,
        entries: Iterable[Feedback] | AsyncIterable[Feedback],
        *,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Acknowledgement]:
        """As ``Client.stream_feedback``, for ``async for``."""
        stream = _stream(FeedbackForm(), self._calls, self._connection, timeout_s)
        call = AsyncStreamCall(lambda: self._method("StreamFeedback"), entries, self._sleep)
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
        """Close the connection; calls in progress are cancelled."""
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

    async def _perform(self, step: Send | Pause) -> Any:
        if isinstance(step, Pause):
            return await self._sleep(step.seconds)
        return await self._method(step.method)(step.request, timeout=step.timeout_s)

    def _method(self, name: str) -> Any:
        if self._channel is None:
            self._channel = self._connection.async_channel()
            self._methods = _methods(self._channel, self._connection.metadata)
        return self._methods[name]


def _stream(
    form: StreamForm, calls: Calls, connection: Connection, timeout_s: float | None
) -> ResumedStream:
    patience_s = connection.deadline(timeout_s).timeout_s
    return ResumedStream(form, calls, patience_s, connection.clock)


def _classify_form(model: str, version: int, top_k: int) -> ClassifyForm:
    check_range("version", version, 2**63)
    check_range("top_k", top_k, 2**31)
    return ClassifyForm(model, version, top_k)


def _listed(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _images(images: bytes | Sequence[bytes]) -> Sequence[bytes]:
    return [images] if isinstance(images, bytes) else list(images)


def _feedback_list(entries: Feedback | Iterable[Feedback]) -> list[Feedback]:
    return [entries] if isinstance(entries, Feedback) else list(entries)


def _methods(channel: Any, metadata: Any) -> dict[str, Any]:
    """RPC name -> callable, on a channel of either kind; ``metadata`` goes with every call."""
    services: Any = prediction_pb2_grpc  # the generated stubs have no type information
    prediction = services.PredictionServiceStub(channel)
    services = model_pb2_grpc
    model = services.ModelServiceStub(channel)
    services = feedback_pb2_grpc
    feedback = services.FeedbackServiceStub(channel)
    methods = {
        "ClassifyText": prediction.ClassifyText,
        "ClassifyImage": prediction.ClassifyImage,
        "EmbedText": prediction.EmbedText,
        "EmbedImage": prediction.EmbedImage,
        "StreamClassify": prediction.StreamClassify,
        "ListModels": model.ListModels,
        "GetModel": model.GetModel,
        "SendFeedback": feedback.SendFeedback,
        "StreamFeedback": feedback.StreamFeedback,
    }
    return {name: partial(each, metadata=metadata) for name, each in methods.items()}
