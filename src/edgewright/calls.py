"""What one call to a server consists of, without the I/O: requests, retries, deadlines, answers.

A call is a generator. It yields ``Send`` (make this RPC and send me its response, or throw me its
``grpc.RpcError``) and ``Pause`` (wait), and returns the answer. ``edgewright.client`` drives the
same generators from a thread and from asyncio, so neither is a copy of the other.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
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
from edgewright.errors import (
    ConfigError,
    DeadlineError,
    EdgewrightError,
    InputError,
    NotReadyError,
    OverloadedError,
    ServiceError,
)
from edgewright.feedback import (
    Acknowledgement,
    Feedback,
    entry_message,
    feedback_chunks,
    matched,
)
from edgewright.rpc_errors import STATUS_METADATA_KEY, RpcFailure, from_rpc_error
from edgewright.v1 import feedback_pb2, model_pb2, prediction_pb2

FIRST_DELAY_S: Final = 0.05
LONGEST_DELAY_S: Final = 2.0
# One request's share of a long list: small beside gRPC's 4 MiB and a server's queue.
MAX_TEXTS: Final = 64
MAX_TEXT_BYTES: Final = 1 << 20
MAX_IMAGE_BYTES: Final = 8 << 20  # half of what a server takes in one message

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
class Deadline:
    """The moment until which a call may try; ``clock`` gives seconds, monotonic."""

    clock: Callable[[], float]
    timeout_s: float
    at: float

    @classmethod
    def after(cls, timeout_s: float, clock: Callable[[], float]) -> Deadline:
        """The deadline ``timeout_s`` from now.

        Raises:
            ConfigError: not a positive, finite number of seconds.
        """
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise ConfigError(f"timeout_s={timeout_s}: a positive number of seconds is expected")
        return cls(clock, timeout_s, clock() + timeout_s)

    def remaining_s(self) -> float:
        """Seconds left; negative once it has passed."""
        return self.at - self.clock()


@dataclass(frozen=True)
class _Inputs:
    """One kind of what callers send: the field of a request, and what bounds one request."""

    field: str
    check: Callable[[Sequence[Any]], None]  # raises InputError
    size_of: Callable[[Any], int]  # in bytes
    limit: int  # bytes of a request that holds several


@dataclass(frozen=True)
class _Method(Generic[T]):
    """An RPC that answers each of its inputs."""

    name: str
    request: Callable[..., Message]
    inputs: _Inputs
    answers: str  # the field of its response
    read: Callable[[Any], T]


@dataclass(frozen=True)
class Calls:
    """The calls that a client of ``target`` makes."""

    target: str
    retries: int
    rng: random.Random

    def classify(
        self, texts: Sequence[str], model: str, version: int, top_k: int, deadline: Deadline
    ) -> Steps[list[Classification]]:
        """Classify ``texts``, in as many requests as it takes, answers in the order of the texts.

        Raises:
            InputError: no texts, or one that is not Unicode; or the server refused one.
        """
        options = {"model": model, "version": version, "top_k": top_k}
        return self._in_parts(_CLASSIFY_TEXT, texts, options, deadline)

    def classify_images(
        self, images: Sequence[bytes], model: str, version: int, top_k: int, deadline: Deadline
    ) -> Steps[list[Classification]]:
        """Classify image files, in as many requests as it takes, answers in their order.

        Raises:
            InputError: no images, or one that is not bytes; or the server refused one.
        """
        options = {"model": model, "version": version, "top_k": top_k}
        return self._in_parts(_CLASSIFY_IMAGE, images, options, deadline)

    def embed(
        self, texts: Sequence[str], model: str, version: int, normalize: bool, deadline: Deadline
    ) -> Steps[list[Embedding]]:
        """The vectors of ``texts``, in as many requests as it takes; raises as ``classify``."""
        options = {"model": model, "version": version, "normalize": normalize}
        return self._in_parts(_EMBED_TEXT, texts, options, deadline)

    def embed_images(
        self, images: Sequence[bytes], model: str, version: int, normalize: bool, deadline: Deadline
    ) -> Steps[list[Embedding]]:
        """The vectors of image files; raises as ``classify_images``."""
        options = {"model": model, "version": version, "normalize": normalize}
        return self._in_parts(_EMBED_IMAGE, images, options, deadline)

    def _in_parts(
        self,
        method: _Method[T],
        inputs: Sequence[Any],
        options: Mapping[str, Any],
        deadline: Deadline,
    ) -> Steps[list[T]]:
        """Send requests of some inputs each; the answers of all, in the order of the inputs.

        ``options`` are what every request says beside its inputs.
        """
        kind = method.inputs
        kind.check(inputs)
        check_range("version", options["version"], 2**63)
        check_range("top_k", options.get("top_k", 0), 2**31)
        answers: list[T] = []
        for chunk in chunks(inputs, kind.size_of, kind.limit):
            request = method.request(**options, **{kind.field: chunk})
            try:
                response = yield from self.unary(method.name, request, deadline)
            except InputError as error:
                raise _at_its_place(error, len(answers)) from error
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
        """One model."""
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
        self, entries: Sequence[Feedback], deadline: Deadline
    ) -> Steps[list[Acknowledgement]]:
        """Have ``entries`` stored, in as many requests as it takes; an answer for each, in order.

        Raises:
            InputError: an entry cannot be put into a message.
        """
        answers: list[Acknowledgement] = []
        for chunk in feedback_chunks(entries):
            request = feedback_pb2.SendFeedbackRequest(entries=map(entry_message, chunk))
            response = yield from self.unary("SendFeedback", request, deadline)
            answers.extend(matched(response.acknowledgements, chunk, self.target))
        return answers

    def unary(self, method: str, request: Message, deadline: Deadline) -> Steps[Any]:
        """One RPC, tried again while that may help and the deadline allows."""
        for attempt in itertools.count():
            remaining_s = deadline.remaining_s()
            if remaining_s <= 0:
                raise DeadlineError(_late(self.target, deadline.timeout_s))
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
        elif failure.code() is not grpc.StatusCode.UNAVAILABLE and not _dropped(failure):
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


@dataclass(frozen=True)
class _Explained:
    """A failed call whose message says what to do about it."""

    failure: RpcFailure
    message: str

    def code(self) -> grpc.StatusCode:
        return self.failure.code()

    def details(self) -> str:
        return self.message

    def trailing_metadata(self) -> Iterable[tuple[str, Any]] | None:
        return self.failure.trailing_metadata()


def explained(
    failure: RpcFailure, target: str, timeout_s: float, option: str = "--port"
) -> EdgewrightError:
    """The exception that a failed call stands for, with a message that says what to do about it.

    ``option`` of `edgewright serve` names the port that was meant.
    """
    told_by_server = any(key == STATUS_METADATA_KEY for key, _ in failure.trailing_metadata() or ())
    details = failure.details() or failure.code().name
    if told_by_server:
        message = f"{target}: {details}"
    elif failure.code() is grpc.StatusCode.UNAVAILABLE:
        message = _unreachable(target, details, option)
    elif failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = _late(target, timeout_s)
    elif _dropped(failure):
        message = (
            f"{target} dropped the call unseen, as gRPC does where more calls come than the server "
            "can look at; try again later, or ask another replica"
        )
    elif failure.code() is grpc.StatusCode.UNIMPLEMENTED:
        message = (
            f"{target} is a gRPC server, but not one of edgewright ({details}); "
            f"give the port that `edgewright serve {option}` names"
        )
    else:
        message = f"{target}: {details}"
    return from_rpc_error(_Explained(failure, message))


def _dropped(failure: RpcFailure) -> bool:
    """Whether the server's gRPC cancelled the call; what this side cancels has other details."""
    return failure.code() is grpc.StatusCode.CANCELLED and failure.details() == "CANCELLED"


def _late(target: str, timeout_s: float) -> str:
    return f"no answer from {target} within {timeout_s:g} s; allow more, or send fewer texts"


def _unreachable(target: str, details: str, option: str) -> str:
    """The next step by what gRPC says of the connection, which has no code of its own."""
    said = details.lower()
    if "http/2" in said or "http1" in said or "alpn" in said:
        return (
            f"{target} answers, but not in gRPC ({details}); is it the metrics port? "
            f"Give the port that `edgewright serve {option}` names"
        )
    if "handshake" in said:
        return (
            f"the TLS handshake with {target} failed ({details}); does the server speak TLS, "
            "and are the root certificates those that signed its own?"
        )
    if "socket closed" in said:
        return (
            f"{target} closes the connection ({details}); does it want TLS (--tls-ca), or a "
            "certificate of this client (--tls-cert and --tls-key)?"
        )
    if "resol" in said or "dns" in said or "lookup" in said:
        return f"no host goes by the name in {target} ({details}); check the spelling"
    port = target.rpartition(":")[2]
    given = f" {option} {port}" if port.isdigit() else ""
    return (
        f"no server answers at {target} ({details}); "
        f"start one with `edgewright serve REPOSITORY{given}`"
    )


def _check_texts(texts: Sequence[str]) -> None:
    if not texts:
        raise InputError("no texts to classify; give at least one", field="texts")
    for index, text in enumerate(texts):
        field = f"texts[{index}]"
        if not isinstance(text, str):
            raise InputError(f"{field} is a {type(text).__name__}, not a str", field=field)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{field} is not valid Unicode: {error.reason} at {error.start}", field=field
            ) from error


def _check_images(images: Sequence[object]) -> None:
    if not images:
        raise InputError("no images to classify; give at least one", field="images")
    for index, image in enumerate(images):
        if not isinstance(image, bytes):
            field = f"images[{index}]"
            raise InputError(
                f"{field} is a {type(image).__name__}, not the bytes of an image file", field=field
            )


def check_range(field: str, value: int, end: int) -> None:
    """What protobuf would refuse with a ValueError of its own."""
    if not 0 <= value < end:
        raise InputError(f"{field}={value}: 0 or more, and below {end}, is expected", field=field)


def chunks(inputs: Sequence[T], size_of: Callable[[T], int], limit: int) -> Iterator[list[T]]:
    """Runs of at most MAX_TEXTS inputs and ``limit`` bytes; a longer input goes alone."""
    chunk: list[T] = []
    size = 0
    for each in inputs:
        bytes_of_input = size_of(each)
        if chunk and (len(chunk) == MAX_TEXTS or size + bytes_of_input > limit):
            yield chunk
            chunk, size = [], 0
        chunk.append(each)
        size += bytes_of_input
    yield chunk


def _at_its_place(error: InputError, offset: int) -> InputError:
    """``error`` with texts[i] or images[i] counted from the caller's list, not the request's."""

    def counted(text: str) -> str:
        return re.sub(r"\b(texts|images)\[(\d+)\]", lambda m: f"{m[1]}[{int(m[2]) + offset}]", text)

    return InputError(counted(str(error)), field=counted(error.field))


_TEXTS: Final = _Inputs("texts", _check_texts, lambda text: len(text.encode()), MAX_TEXT_BYTES)
_IMAGES: Final = _Inputs("images", _check_images, len, MAX_IMAGE_BYTES)
_CLASSIFY_TEXT: Final = _Method(
    "ClassifyText",
    prediction_pb2.ClassifyTextRequest,
    _TEXTS,
    "classifications",
    classification,
)
_CLASSIFY_IMAGE: Final = _Method(
    "ClassifyImage",
    prediction_pb2.ClassifyImageRequest,
    _IMAGES,
    "classifications",
    classification,
)
_EMBED_TEXT: Final = _Method(
    "EmbedText", prediction_pb2.EmbedTextRequest, _TEXTS, "embeddings", embedding
)
_EMBED_IMAGE: Final = _Method(
    "EmbedImage", prediction_pb2.EmbedImageRequest, _IMAGES, "embeddings", embedding
)
