"""Tensors on the wire of the Open Inference Protocol: checked, decoded and encoded."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewright.errors import InputError

BYTES: Final = "BYTES"
INT64: Final = "INT64"
FP32: Final = "FP32"
_NUMBERS: Final[dict[str, np.dtype[Any]]] = {INT64: np.dtype("<i8"), FP32: np.dtype("<f4")}
_FORMATS: Final = {INT64: "q", FP32: "f"}
_LENGTH: Final = struct.Struct("<I")  # before each element of BYTES


class TensorType(NamedTuple):
    """A tensor that a model takes or gives; -1 in ``shape`` is an axis that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class GivenTensor(NamedTuple):
    """A tensor as it came: ``content`` is raw bytes, or the elements one by one."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes | Sequence[Any]


class AnswerTensor(NamedTuple):
    """A tensor that goes out; ``values`` is its elements in order, bytes or numbers."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any]

    def raw(self) -> bytes:
        """Its elements as bytes, little-endian."""
        if self.datatype == BYTES:
            return b"".join([_LENGTH.pack(len(value)) + value for value in self.values])
        return struct.pack(f"<{len(self.values)}{_FORMATS[self.datatype]}", *self.values)


def strings(given: GivenTensor, kind: TensorType) -> list[bytes]:
    """The elements of ``given``, which is to be of the datatype BYTES; raises as ``array``."""
    _check_type(given, kind)
    return _bytes(given, math.prod(given.shape))


def array(given: GivenTensor, kind: TensorType) -> NDArray[Any]:
    """The numbers of ``given``, in its shape.

    Raises:
        InputError: datatype, shape or content are not those of ``kind``; names what was expected.
    """
    _check_type(given, kind)
    return _numbers(given, math.prod(given.shape), _NUMBERS[kind.datatype])


def _check_type(given: GivenTensor, kind: TensorType) -> None:
    if given.datatype != kind.datatype:
        raise fault(kind.name, f"has datatype {given.datatype!r}; {kind.datatype} is expected")
    _check_shape(given.shape, kind)


def fault(name: str, what: str) -> InputError:
    """An error about the tensor ``name``."""
    return InputError(f"tensor {name[:200]!r} {what}", field=name)


def _check_shape(shape: Sequence[int], kind: TensorType) -> None:
    # A batch of single strings has one axis or, for servers that want one for the row, two.
    forms = [kind.shape, kind.shape[:1]] if kind.datatype == BYTES else [kind.shape]
    if not any(_fits(shape, form) for form in forms):
        expected = " or ".join(str(list(form)) for form in forms)
        raise fault(
            kind.name, f"has shape {list(shape)[:20]}; {expected} is expected, -1 being any number"
        )
    if 0 in shape:
        raise fault(kind.name, f"has shape {list(shape)}, which is empty; give at least one row")


def _fits(shape: Sequence[int], form: Sequence[int]) -> bool:
    return len(shape) == len(form) and all(
        have >= 0 and want in (-1, have) for have, want in zip(shape, form, strict=True)
    )


def _numbers(given: GivenTensor, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    content = given.content
    if isinstance(content, bytes):
        if len(content) != count * dtype.itemsize:
            raise fault(
                given.name,
                f"has {len(content)} bytes; its shape {list(given.shape)} of {given.datatype} "
                f"takes {count * dtype.itemsize}",
            )
        return np.frombuffer(content, dtype).reshape(given.shape)
    _check_count(given, count)
    allowed = {int} if given.datatype == INT64 else {int, float}
    if not set(map(type, content)) <= allowed:
        place, value = next(each for each in enumerate(content) if type(each[1]) not in allowed)
        raise fault(given.name, f"holds {value!r:.80} at {place}; {given.datatype} is expected")
    try:
        return np.array(content, dtype).reshape(given.shape)
    except OverflowError as error:
        raise fault(given.name, f"holds a number that {given.datatype} cannot") from error


def _bytes(given: GivenTensor, count: int) -> list[bytes]:
    if not isinstance(given.content, bytes):
        _check_count(given, count)
        return list(given.content)
    content, place = given.content, 0
    elements: list[bytes] = []
    while place < len(content) and len(elements) <= count:
        start = place + _LENGTH.size
        length = _LENGTH.unpack_from(content, place)[0] if start <= len(content) else 0
        if start + length > len(content):
            raise fault(
                given.name,
                f"ends within element {len(elements)}: each is its length in 4 bytes, "
                f"little-endian, and as many bytes; of {len(content)} bytes, "
                f"{len(content) - place} are left for it",
            )
        elements.append(content[start : start + length])
        place = start + length
    if len(elements) > count:
        raise _miscounted(given, f"more than {count}", count)
    if len(elements) < count:
        raise _miscounted(given, str(len(elements)), count)
    return elements


def _check_count(given: GivenTensor, count: int) -> None:
    if len(given.content) != count:
        raise _miscounted(given, str(len(given.content)), count)


def _miscounted(given: GivenTensor, have: str, count: int) -> InputError:
    return fault(given.name, f"has {have} elements; its shape {list(given.shape)} takes {count}")
