"""What one call to a server consists of, without the I/O: requests, retries, deadlines, answers.

A call is a generator. It yields ``Send`` (make this RPC and send me its response, or throw me its
``grpc.RpcError``) and ``Pause`` (wait), and returns the answer. ``edgewright.client`` drives the
same generators from a thread and from asyncio, so neither is a copy of the other.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from edgewright.answers import (
    Classification,
    Embedding,
    ModelState,
    ServedModel,
    classification,
    embedding,
    served_model,
)
from edgewright.call_inputs import (
    IMAGES,
    TEXTS,
    Images,
    Inputs,
    Texts,
    at_its_place,
    check_name,
    check_range,
    chunks,
)
from edgewright.deadline import Deadline
from edgewright.errors import (
    DeadlineError,
    InputError,
    NotReadyError,
    OverloadedError,
    ServiceError,
)
from edgewright.failed_call import dropped, explained, late
from edgewright.feedback import (
    Acknowledgement,
    Feedback,
    entry_message,
    feedback_chunks,
    matched,
)
from edgewright.v1 import feedback_pb2, model_pb2, prediction_pb2

FIRST_DELAY_S: Final = 0.05
LONGEST_DELAY_S: Final = 2.0
T = TypeVar("T")


@dataclass(frozen=True)
class Send:
    """One attempt at an RPC; ``timeout_s`` is what is left of the call's deadline."""

    method: str
    request: Message
    timeout_s: float


@dataclass(frozen=True)
class Pause:
    """Wait before the next attempt."""

    seconds: float


Steps = Generator[Send | Pause, Any, T]


@dataclass(frozen=True)
class _Method(Generic[T]):
    """An RPC that answers each of its inputs."""

    name: str
    request: Callable[..., Message]
    inputs: Inputs
    answers: str  # the field of its response
    read: Callable[[Any], T]


@dataclass(frozen=True)
class Calls:
    """The calls that a client of ``target`` makes."""

    target: str
    retries: int
    rng: random.Random

    def classify(
        self, texts: Texts, model: str, version: int, top_k: int, deadline: Deadline
    ) -> Steps[list[Classification]]:
        """Classify ``texts``, in as many requests as it takes, answers in the order of the texts.

        Raises:
            InputError: no texts, or one that is not Unicode; or the server refused one.
        """
        options = {"model": model, "version": version, "top_k": top_k}
        return self._in_parts(_CLASSIFY_TEXT, texts, options, deadline)

    def classify_images(
        self, images: Images, model: str, version: int, top_k: int, deadline: Deadline
    ) -> Steps[list[Classification]]:
        """Classify image files, in as many requests as it takes, answers in their order.

        Raises:
            InputError: no images, or one that is not bytes; or the server refused one.
        """
        options = {"model": model, "version": version, "top_k": top_k}
        return self._in_parts(_CLASSIFY_IMAGE, images, options, deadline)

    def embed(
        self, texts: Texts, model: str, version: int, normalize: bool, deadline: Deadline
    ) -> Steps[list[Embedding]]:
        """The vectors of ``texts``, in as many requests as it takes; raises as ``classify``."""
        options = {"model": model, "version": version, "normalize": normalize}
        return self._in_parts(_EMBED_TEXT, texts, options, deadline)

    def embed_images(
        self, images: Images, model: str, version: int, normalize: bool, deadline: Deadline
    ) -> Steps[list[Embedding]]:
        """The vectors of image files; raises as ``classify_images``."""
        options = {"model": model, "version": version, "normalize": normalize}
        return self._in_parts(_EMBED_IMAGE, images, options, deadline)

    def _in_parts(
        self,
        method: _Method[T],
        given: Any,
        options: Mapping[str, Any],
        deadline: Deadline,
    ) -> Steps[list[T]]:
        """Send requests of some inputs each; the answers of all, in the order of the inputs.

        ``given`` is one input, or several; ``options`` go with every request.
        """
        kind = method.inputs
        inputs = kind.listed(given)
        kind.check(inputs)
        check_name(options["model"])
        check_range("version", options["version"], 2**63)
        check_range("top_k", options.get("top_k", 0), 2**31)
        answers: list[T] = []
        for chunk in chunks(inputs, kind.size_of, kind.limit):
            request = method.request(**options, **{kind.field: chunk})
            try:
                response = yield from self.unary(method.name, request, deadline)
            except InputError as error:
                raise at_its_place(error, len(answers)) from error
            found = getattr(response, method.answers)
            if len(found) != len(chunk):
                raise ServiceError(
                    f"{self.target} gave {len(found)} answers to {len(chunk)} {kind.field}; the "
                    "server and this client do not fit together"
                )
            answers.extend(map(method.read, found))
        return answers

    def list_models(self, deadline: Deadline) -> Steps[list[ServedModel]]:
        """Every model that the server holds."""
        request = model_pb2.ListModelsRequest()
        response = yield from self.unary("ListModels", request, deadline)
        return [served_model(model) for model in response.models]

    def get_model(self, name: str, version: int, deadline: Deadline) -> Steps[ServedModel]:
        """One model; InputError where its name is no Unicode."""
        check_name(name)
        check_range("version", version, 2**63)
        request = model_pb2.GetModelRequest(model=name, version=version)
        response = yield from self.unary("GetModel", request, deadline)
        return served_model(response.model)

    def ready(self, name: str, deadline: Deadline) -> Steps[bool]:
        """Whether the model, or every model where none is named, answers now; tried once."""
        try:
            return (yield from self._once_ready(name, deadline))
        except (NotReadyError, DeadlineError):
            return False

    def wait_until_ready(self, name: str, deadline: Deadline) -> Steps[None]:
        """Ask again and again until ``ready``.

        Raises:
            NotReadyError: it was not before the deadline; says why.
        """
        for attempt in itertools.count():
            why = "its models are still loading"
            try:
                if (yield from self._once_ready(name, deadline)):
                    return
            except (NotReadyError, DeadlineError) as error:
                why = str(error)
            pause = self.backoff_s(attempt)
            if pause >= deadline.remaining_s():
                raise NotReadyError(
                    f"{self.target} was not ready within {deadline.timeout_s:g} s: {why}"
                )
            yield Pause(pause)

    def send_feedback(
        self, entries: Feedback | Iterable[Feedback], deadline: Deadline
    ) -> Steps[list[Acknowledgement]]:
        """Have ``entries`` stored, in as many requests as it takes; an answer for each, in order.

        Raises:
            InputError: an entry cannot be put into a message.
        """
        answers: list[Acknowledgement] = []
        listed = [entries] if isinstance(entries, Feedback) else list(entries)
        for chunk in feedback_chunks(listed):
            request = feedback_pb2.SendFeedbackRequest(entries=map(entry_message, chunk))
            response = yield from self.unary("SendFeedback", request, deadline)
            answers.extend(matched(response.acknowledgements, chunk, self.target))
        return answers

    def unary(self, method: str, request: Message, deadline: Deadline) -> Steps[Any]:
        """One RPC, tried again while that may help and the deadline allows."""
        for attempt in itertools.count():
            remaining_s = deadline.remaining_s()
            if remaining_s <= 0:
                raise DeadlineError(late(self.target, deadline.timeout_s))
            try:
                return (yield Send(method, request, remaining_s))
            except grpc.RpcError as failure:
                pause = self._pause_before_retry(failure, attempt, deadline)
            yield Pause(pause)

    def _once_ready(self, name: str, deadline: Deadline) -> Steps[bool]:
        once = Calls(self.target, 0, self.rng)
        if name:
            models = [(yield from once.get_model(name, 0, deadline))]
        else:
            every = yield from once.list_models(deadline)
            # What failed takes nobody's place; GetModel tells of it.
            models = [each for each in every if each.state is not ModelState.FAILED]
        return bool(models) and all(model.state is ModelState.READY for model in models)

    def _pause_before_retry(self, failure: Any, attempt: int, deadline: Deadline) -> float:
        """Seconds to wait, or the error where another attempt would not help or be too late."""
        error = explained(failure, self.target, deadline.timeout_s)
        pause = self.backoff_s(attempt)
        if isinstance(error, OverloadedError):  # only where the server sent RetryInfo
            pause += error.retry_after_s
        elif failure.code() is not grpc.StatusCode.UNAVAILABLE and not dropped(failure):
            raise error from failure
        if attempt >= self.retries or pause >= deadline.remaining_s():
            raise error from failure
        return pause

    def backoff_s(self, attempt: int) -> float:
        """Seconds to wait after a failed attempt, of which the first is 0.

        Exponential, with half of it drawn, so that clients which failed together spread out.
        """
        longest = min(FIRST_DELAY_S * 2.0 ** min(attempt, 30), LONGEST_DELAY_S)
        return longest * self.rng.uniform(0.5, 1.0)


_CLASSIFY_TEXT: Final = _Method(
    "ClassifyText",
    prediction_pb2.ClassifyTextRequest,
    TEXTS,
    "classifications",
    classification,
)
_CLASSIFY_IMAGE: Final = _Method(
    "ClassifyImage",
    prediction_pb2.ClassifyImageRequest,
    IMAGES,
    "classifications",
    classification,
)
_EMBED_TEXT: Final = _Method(
    "EmbedText", prediction_pb2.EmbedTextRequest, TEXTS, "embeddings", embedding
)
_EMBED_IMAGE: Final = _Method(
    "EmbedImage", prediction_pb2.EmbedImageRequest, IMAGES, "embeddings", embedding
)
