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

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from edgewright.answers import (
    Classification,
    ClassScore,
    Embedding,
    ModelState,
    ServedCertificate,
    ServedModel,
)
from edgewright.async_client import AsyncClient
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
from edgewright.feedback import Acknowledgement, AckStatus, Feedback, FeedbackForm
from edgewright.resumed_stream import ResumedStream, StreamForm
from edgewright.stream_calls import StreamCall
from edgewright.streamed import ClassifyForm, StreamedAnswer

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
    when no server answers), OverloadedError, DeadlineError, UnauthenticatedError,
    PermissionDeniedError, ConfigError once it is closed, or what else ``rpc_errors`` maps.
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
        self._methods = self._connection.methods(self._channel)
        self._closed = False

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
        steps = self._calls.classify(texts, model, version, top_k, deadline)
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
        steps = self._calls.classify_images(images, model, version, top_k, deadline)
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
        steps = self._calls.embed(texts, model, version, normalize, deadline)
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
        steps = self._calls.embed_images(images, model, version, normalize, deadline)
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
        at a time, as the iterator is advanced; where 64 take longer than a second, what there is
        goes, and is answered before more is read. A bad item has its own error, and the rest goes
        on. Where the connection breaks, what was not answered is sent again. ``timeout_s`` bounds,
        in place of the client's, how long nothing may be answered before the error is raised; the
        time that ``items`` takes does not count.
        """
        check_several(items, "items")
        stream = self._stream(ClassifyForm(model, version, top_k), timeout_s)
        call = StreamCall(
            self._methods["StreamClassify"],
            iter(items),
            self._while_open,
            self._sleep,
            self._connection.clock,
        )
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
        return self._drive(self._calls.send_feedback(entries, deadline))

    def stream_feedback(
        self, entries: Iterable[Feedback], *, timeout_s: float | None = None
    ) -> Iterator[Acknowledgement]:
        """Have many entries stored: an acknowledgement for each, in their order, as they come.

        ``entries`` is read ahead, 64 a message and a few messages at a time, as the iterator is
        advanced; where 64 take longer than a second, what there is goes, and is acknowledged before
        more is read. Where the connection breaks, or its deadline passes while ``entries`` keeps
        everybody waiting, what was not acknowledged is sent again; what had been stored all the
        same comes back as a DUPLICATE. ``timeout_s`` bounds, in place of the client's, how long
        nothing may be acknowledged before the error is raised; the time that ``entries`` takes does
        not count.
        """
        check_several(entries, "entries")
        stream = self._stream(FeedbackForm(), timeout_s)
        call = StreamCall(
            self._methods["StreamFeedback"],
            iter(entries),
            self._while_open,
            self._sleep,
            self._connection.clock,
        )
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
        """Close the connection; calls in progress end, with ConfigError."""
        self._closed = True
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

    def _stream(self, form: StreamForm, timeout_s: float | None) -> ResumedStream:
        patience_s = self._connection.deadline(timeout_s).timeout_s
        return ResumedStream(form, self._calls, patience_s, self._connection.clock)

    def _perform(self, step: Send | Pause) -> Any:
        if isinstance(step, Pause):
            return self._sleep(step.seconds)
        with self._while_open():
            return self._methods[step.method](step.request, timeout=step.timeout_s)

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        """For what is done with the channel: what gRPC raises once it is closed is told as that."""
        self._check_open()
        try:
            yield
        except ValueError as error:  # what a new call is told
            self._check_open(error)
            raise
        except grpc.RpcError as error:
            failure: Any = error
            if failure.code() is grpc.StatusCode.CANCELLED:
                self._check_open(error)
            raise

    def _check_open(self, cause: Exception | None = None) -> None:
        if self._closed:
            raise self._connection.closed() from cause
