"""The Open Inference Protocol as JSON, with Triton's extension for tensors in binary.

With it, the header Inference-Header-Content-Length says where the JSON ends; behind it follow, in
their order, the contents of the inputs that have the parameter "binary_data_size".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgewright.errors import InputError
from edgewright.serve.inference import InferCall, RequestedTensor, classes_asked, refuse_parameters
from edgewright.serve.json_input import from_base64, json_object, refuse_keys, taken, utf8
from edgewright.serve.models import ServedModel
from edgewright.serve.tensors import BYTES, AnswerTensor, GivenTensor, TensorType, fault

BINARY: Final = "binary_data"
BINARY_OUTPUT: Final = "binary_data_output"
BINARY_SIZE: Final = "binary_data_size"
_MOST_OF_A_SIDE: Final = 2**63  # an int64 of the protocol
IMAGE_INPUT: Final = "image"  # files are no text: in JSON they are base64


@dataclass(frozen=True)
class JsonCall:
    """What is asked, and how it is to be answered."""

    call: InferCall
    id: str
    binary_outputs: Mapping[str, bool]  # those asked for by name that say
    binary: bool  # the others


def parse_call(body: bytes, header_length: str | None, model: str, version: str) -> JsonCall:
    """The call that a request's body holds; InputError names the field at fault."""
    end = _header_end(body, header_length)
    given = json_object(body[:end])
    refuse_keys("the request", given, ("id", "parameters", "inputs", "outputs"))
    parameters = dict(taken(given, "parameters", dict, {}))
    binary = taken(parameters, BINARY_OUTPUT, bool, False)
    parameters.pop(BINARY_OUTPUT, None)
    outputs = [_object("outputs", each) for each in taken(given, "outputs", list, [])]
    tail = _Tail(body[end:])
    inputs = [_input(_object("inputs", each), tail) for each in taken(given, "inputs", list)]
    tail.check_end()
    call = InferCall(model, version, inputs, [_output(each) for each in outputs], parameters)
    said = {
        each["name"]: taken(each["parameters"], BINARY, bool)
        for each in outputs
        if BINARY in each.get("parameters", {})
    }
    return JsonCall(call, taken(given, "id", str, ""), said, binary)


def answer_body(
    asked: JsonCall, model: ServedModel, tensors: Sequence[AnswerTensor]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON where binary follows."""
    outputs, tail = [], b""
    for each in tensors:
        told: dict[str, Any] = {
            "name": each.name, "datatype": each.datatype, "shape": each.shape,
        }  # fmt: skip
        if asked.binary_outputs.get(each.name, asked.binary):
            raw = each.raw()
            told["parameters"] = {BINARY_SIZE: len(raw)}
            tail += raw
        else:
            texts = each.datatype == BYTES
            told["data"] = [value.decode() for value in each.values] if texts else each.values
        outputs.append(told)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": str(model.version)}
    if asked.id:
        answer["id"] = asked.id
    head = json.dumps({**answer, "outputs": outputs}).encode()
    return head + tail, len(head) if tail else None


def metadata(model: ServedModel, versions: Sequence[str], inputs: Sequence[TensorType],
             outputs: Sequence[TensorType], platform: str) -> dict[str, Any]:  # fmt: skip
    """A model's versions and tensors, as the protocol tells them."""

    def told(types: Sequence[TensorType]) -> list[dict[str, Any]]:
        return [{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in types]

    return {
        "name": model.name,
        "versions": versions,
        "platform": platform,
        "inputs": told(inputs),
        "outputs": told(outputs),
    }


class _Tail:
    """The bytes behind the JSON, taken piece by piece."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def take(self, name: str, size: int) -> bytes:
        left = len(self._data) - self._place
        if not 0 <= size <= left:
            raise fault(name, f"has {BINARY_SIZE} {size}; {left} bytes are left behind the JSON")
        self._place += size
        return self._data[self._place - size : self._place]

    def check_end(self) -> None:
        left = len(self._data) - self._place
        if left:
            raise InputError(f"{left} bytes behind the JSON belong to no input", field="body")


def _header_end(body: bytes, header_length: str | None) -> int:
    if header_length is None:
        return len(body)
    if not header_length.isascii() or not header_length.isdigit() or len(header_length) > 12:
        raise InputError(f"Inference-Header-Content-Length is {header_length!r:.100}", field="body")
    if int(header_length) > len(body):
        raise InputError(
            f"Inference-Header-Content-Length is {header_length}; the body has {len(body)} bytes",
            field="body",
        )
    return int(header_length)


def _object(where: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InputError(f"{where} holds {given!r:.100}; a JSON object is expected", field=where)
    return given


def _input(given: dict[str, Any], tail: _Tail) -> GivenTensor:
    refuse_keys("an input", given, ("name", "datatype", "shape", "parameters", "data"))
    name, datatype = taken(given, "name", str), taken(given, "datatype", str)
    shape = taken(given, "shape", list)
    if not all(type(side) is int and -1 <= side < _MOST_OF_A_SIDE for side in shape):
        raise fault(name, f"has shape {shape!r:.100}; whole numbers are expected")
    parameters = taken(given, "parameters", dict, {})
    refuse_parameters(name, parameters, (BINARY_SIZE, "content_type"))
    content: bytes | list[Any]
    if BINARY_SIZE in parameters:
        if "data" in given:
            raise fault(name, f"has data beside {BINARY_SIZE}; give one of them")
        content = tail.take(name, taken(parameters, BINARY_SIZE, int))
    else:
        content = _elements(name, datatype, taken(given, "data", list))
    return GivenTensor(name, datatype, tuple(shape), content)


def _elements(name: str, datatype: str, data: list[Any]) -> list[Any]:
    """In one list, row by row, whether they came nested or not."""
    while data and isinstance(data[0], list):
        if not all(isinstance(each, list) for each in data):
            raise fault(name, "has data of rows and single elements mixed")
        if any(len(each) != len(data[0]) for each in data):
            raise fault(name, "has data of rows that are not equally long")
        data = [each for row in data for each in row]
    if datatype != BYTES:
        return data
    read = from_base64 if name == IMAGE_INPUT else utf8
    return [read(each, f"{name}[{place}]") for place, each in enumerate(data)]


def _output(given: dict[str, Any]) -> RequestedTensor:
    refuse_keys("an output", given, ("name", "parameters"))
    name = taken(given, "name", str)
    parameters = {k: v for k, v in taken(given, "parameters", dict, {}).items() if k != BINARY}
    return RequestedTensor(name, classes_asked(name, parameters))
