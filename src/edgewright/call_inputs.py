"""What callers send to be classified: checked, and cut into requests that stay small."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from edgewright.errors import InputError

# One request's share of a long list: small beside gRPC's 4 MiB and a server's queue.
MAX_TEXTS: Final = 64
MAX_TEXT_BYTES: Final = 1 << 20
MAX_IMAGE_BYTES: Final = 8 << 20  # half of what a server takes in one message

T = TypeVar("T")
Texts = str | Sequence[str]  # one or several, as callers give them
Images = bytes | Sequence[bytes]  # files


@dataclass(frozen=True)
class Inputs:
    """One kind of what callers send: the field of a request, and what bounds one request."""

    kind: type  # of one
    one: str  # in words
    field: str
    check: Callable[[Sequence[Any]], None]  # raises InputError
    size_of: Callable[[Any], int]  # in bytes
    limit: int  # bytes of a request that holds several

    def listed(self, given: Any) -> Sequence[Any]:
        """``given``, one or several of them, as several; InputError where it is neither."""
        if isinstance(given, self.kind):
            return [given]
        if isinstance(given, Iterable):
            return list(given)
        raise InputError(
            f"{self.field} is a {type(given).__name__}; give {self.one}, or a list of such",
            field=self.field,
        )


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


def at_its_place(error: InputError, offset: int) -> InputError:
    """``error`` with texts[i] or images[i] counted from the caller's list, not the request's."""

    def counted(text: str) -> str:
        return re.sub(r"\b(texts|images)\[(\d+)\]", lambda m: f"{m[1]}[{int(m[2]) + offset}]", text)

    return InputError(counted(str(error)), field=counted(error.field))


def check_several(given: object, field: str) -> None:
    """InputError where a stream is given one thing in place of several; a text is one."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable | AsyncIterable):
        raise InputError(
            f"{field} is one {type(given).__name__}; a stream takes several: give a list of them, "
            "or what else can be iterated",
            field=field,
        )


def check_range(field: str, value: int, end: int) -> None:
    """What protobuf would refuse with a ValueError of its own."""
    if not 0 <= value < end:
        raise InputError(f"{field}={value}: 0 or more, and below {end}, is expected", field=field)


def check_name(model: str) -> None:
    """Likewise for a model's name, which may be no string at all; then protobuf tells."""
    if isinstance(model, str):
        check_unicode(f"model {model!r}", model, "model", "; list_models tells the names")


def check_unicode(what: str, text: str, field: str = "", hint: str = "") -> None:
    """InputError where ``text`` holds half of a surrogate pair, which no message can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"{what} is not valid Unicode: {error.reason} at {error.start}{hint}"
        raise InputError(reason, field=field) from error


def _check_texts(texts: Sequence[str]) -> None:
    if not texts:
        raise InputError("no texts; give at least one", field="texts")
    for index, text in enumerate(texts):
        field = f"texts[{index}]"
        if not isinstance(text, str):
            raise InputError(f"{field} is a {type(text).__name__}, not a str", field=field)
        check_unicode(field, text, field)


def _check_images(images: Sequence[object]) -> None:
    if not images:
        raise InputError("no images; give at least one", field="images")
    for index, image in enumerate(images):
        if not isinstance(image, bytes):
            field = f"images[{index}]"
            raise InputError(
                f"{field} is a {type(image).__name__}, not the bytes of an image file", field=field
            )


TEXTS: Final = Inputs(
    str, "a str", "texts", _check_texts, lambda text: len(text.encode()), MAX_TEXT_BYTES
)
IMAGES: Final = Inputs(
    bytes, "the bytes of an image file", "images", _check_images, len, MAX_IMAGE_BYTES
)
