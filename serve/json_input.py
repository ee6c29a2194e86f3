"""JSON from a caller: parsed strictly, and every fault an InputError."""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from edgewright.errors import InputError


def json_object(data: bytes) -> dict[str, Any]:
    """The object that ``data`` is.

    Raises:
        InputError: it is no UTF-8, no JSON (NaN and Infinity are none), no object, or a field is
            given twice.
    """
    try:
        text = data.decode()
        parsed = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise InputError("the body is nested too deeply", field="body") from error
    except ValueError as error:  # of UTF-8, of JSON, of a number with thousands of digits
        raise InputError(f"the body is no JSON: {error}", field="body") from error
    if not isinstance(parsed, dict):
        raise InputError("the body is no JSON object; give {...}", field="body")
    return parsed


def refuse_keys(where: str, given: dict[str, Any], known: Sequence[str]) -> None:
    """Raise InputError for a key that would be ignored."""
    for key in given:
        if key not in known:
            raise InputError(
                f"{where} has no field {key[:200]!r}; there are: {', '.join(known)}", field=key
            )


def taken(given: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """The value of ``key``, of type ``kind``; without a default it must be there."""
    value = given.get(key, default)
    if type(value) is not kind:
        told = f"{value!r:.100}" if key in given else "missing"
        raise InputError(f"{key} is {told}; a JSON {_NAMES[kind]} is expected", field=key)
    return value


def utf8(text: Any, where: str) -> bytes:
    """A JSON string in UTF-8."""
    if not isinstance(text, str):
        raise InputError(f"{where} is {text!r:.100}; a string is expected", field=where)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} is not valid Unicode: {error.reason} at {error.start}", field=where
        ) from error


def from_base64(text: Any, where: str) -> bytes:
    """The bytes that a JSON string holds in base64."""
    try:
        return base64.b64decode(utf8(text, where), validate=True)
    except binascii.Error as error:
        raise InputError(
            f"{where} is no base64: {error}; give the file's alone, without `data:...,` before it "
            "and without line breaks (on Linux `base64 -w0 FILE`)",
            field=where,
        ) from error


_NAMES = {str: "string", int: "whole number", list: "array", dict: "object", bool: "true or false"}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    given = dict(pairs)
    if len(given) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InputError(f"{twice[:200]!r} is given twice; give it once", field=twice)
    return given


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
