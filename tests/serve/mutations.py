"""Requests made odd: bytes of a message changed anywhere, or fields given what nobody expects."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

INTEGERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
FLOATS = (0.0, -0.0, 1e-45, 1e30, -1e38, math.nan, math.inf, -math.inf)
STRINGS = (
    "", " ", "\0", "a\0b", "../../etc/passwd", "/etc/passwd", "news/../news", "%2e%2e", "x" * 5_000,
    "\u202e\ufeff", "e\u0301" * 40, "\U0001f469\u200d\U0001f4bb", "\ud7ff\ue000", "-1", "1e309",
    "BYTES", "FP32", "INT64", "UINT8", "text", "input_ids", "news", "pets", "'; drop table feedback;",
)  # fmt: skip
_SIZES = {
    Field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    Field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    Field.CPPTYPE_UINT32: (0, 2**32 - 1),
    Field.CPPTYPE_UINT64: (0, 2**64 - 1),
    Field.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def odd_bytes(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """``data`` with one to four changes; pieces of ``others`` may come in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        rng.choice(_CHANGES)(rng, changed, others)
    return bytes(changed)


def _flip(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))


def _insert(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    place = rng.randint(0, len(data))
    data[place:place] = rng.randbytes(rng.randint(1, 9))


def _cut(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    start = rng.randint(0, len(data))
    del data[start : start + rng.randint(1, 9)]


def _truncate(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    del data[rng.randint(0, len(data)) :]


def _repeat(rng: random.Random, data: bytearray, _others: Sequence[bytes]) -> None:
    start = rng.randint(0, len(data))
    data += data[start : start + 200] * rng.randint(1, 3)


def _splice(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    other = rng.choice(others)
    place, start = rng.randint(0, len(data)), rng.randint(0, len(other))
    data[place:] = other[start:]


_CHANGES: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], None], ...] = (
    _flip, _overwrite, _insert, _cut, _truncate, _repeat, _splice,
)  # fmt: skip


def odd_fields(rng: random.Random, message: Message) -> bytes:
    """``message`` with one to three fields, at any depth, that hold what they should not."""
    for _ in range(rng.randint(1, 3)):
        _change_field(rng, message)
    unknown = rng.randbytes(3) if rng.random() < 0.05 else b""
    return message.SerializeToString() + unknown


def _change_field(rng: random.Random, message: Any) -> None:
    if not message.DESCRIPTOR.fields:
        return
    field = rng.choice(message.DESCRIPTOR.fields)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _change_map(rng, getattr(message, field.name))
    elif field.is_repeated:
        _change_repeated(rng, message, field)
    elif field.message_type is not None:
        inner = getattr(message, field.name)
        inner.SetInParent()
        _change_field(rng, inner)
    elif rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _odd(rng, field))


def _change_map(rng: random.Random, values: Any) -> None:
    name = rng.choice(("timeout", "classification", "priority", "binary_data", "sequence_id", ""))
    _change_field(rng, values[name])


def _change_repeated(rng: random.Random, message: Any, field: Any) -> None:
    values = getattr(message, field.name)
    act = rng.randrange(4)
    if act == 0:
        message.ClearField(field.name)
    elif act == 1 and len(values):
        values.extend([values[rng.randrange(len(values))]] * rng.choice((1, 2, 300)))
    elif field.message_type is not None:
        _change_field(rng, values[rng.randrange(len(values))] if len(values) else values.add())
    elif act == 2 and len(values):
        values[rng.randrange(len(values))] = _odd(rng, field)
    else:
        values.append(_odd(rng, field))


def _odd(rng: random.Random, field: Any) -> Any:
    if field.cpp_type in _SIZES:
        least, most = _SIZES[field.cpp_type]
        return min(max(rng.choice(INTEGERS), least), most)
    if field.cpp_type == Field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if field.cpp_type in (Field.CPPTYPE_FLOAT, Field.CPPTYPE_DOUBLE):
        return rng.choice(FLOATS)
    text = rng.choice(STRINGS)
    return (
        text if field.type == Field.TYPE_STRING else rng.choice((text.encode(), rng.randbytes(30)))
    )
