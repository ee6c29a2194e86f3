"""Requests, serialised before the load begins: sending one then costs no protobuf."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgewright.bench.inputs import Inputs
from edgewright.errors import ConfigError

# What is held in memory, and sent in turn: enough that no cache of the server's holds it all.
MAX_REQUESTS: Final = 4096
MAX_BYTES: Final = 256 << 20
Call = Sequence[Any]  # what one holds: texts, or whole image files


@dataclass(frozen=True)
class Requests:
    """The bytes of each request, and the method that takes them."""

    method: str  # "/edgewright.v1.PredictionService/ClassifyText"
    messages: Sequence[bytes]
    rows: int  # in each

    @property
    def mean_bytes(self) -> float:
        """Of one request."""
        return sum(map(len, self.messages)) / len(self.messages)


def edgewright_requests(inputs: Inputs, rows: int, model: str) -> Requests:
    """Requests of edgewright.v1.

    Raises:
        ConfigError: they are more than is held in memory.
    """
    from edgewright.v1 import prediction_pb2

    def message(call: Call) -> Any:
        if inputs.kind == "text":
            return prediction_pb2.ClassifyTextRequest(model=model, texts=call)
        return prediction_pb2.ClassifyImageRequest(model=model, images=call)

    name = "ClassifyText" if inputs.kind == "text" else "ClassifyImage"
    messages = _held(inputs.calls(rows, MAX_REQUESTS), message)
    return Requests(f"/edgewright.v1.PredictionService/{name}", messages, rows)


def oip_requests(inputs: Inputs, rows: int, model: str, tensor: str, rank: int) -> Requests:
    """Requests of the Open Inference Protocol: one tensor of BYTES, [rows] or [rows, 1].

    Raises:
        ConfigError: they are more than is held in memory.
    """
    from edgewright.oip import inference_pb2

    def message(call: Call) -> Any:
        elements = [each.encode() if isinstance(each, str) else each for each in call]
        given = inference_pb2.ModelInferRequest.InferInputTensor(
            name=tensor, datatype="BYTES", shape=[rows, 1][:rank]
        )
        raw = b"".join(len(each).to_bytes(4, "little") + each for each in elements)
        return inference_pb2.ModelInferRequest(
            model_name=model, inputs=[given], raw_input_contents=[raw]
        )

    messages = _held(inputs.calls(rows, MAX_REQUESTS), message)
    return Requests("/inference.GRPCInferenceService/ModelInfer", messages, rows)


def _held(calls: Iterable[Call], message: Callable[[Call], Any]) -> list[bytes]:
    held: list[bytes] = []
    total = 0
    for call in calls:
        _check_room(total + sum(map(len, call)))  # before one is made, which may be too large
        held.append(message(call).SerializeToString())
        total += len(held[-1])
        _check_room(total)
    return held


def _check_room(total: int) -> None:
    if total > MAX_BYTES:
        raise ConfigError(
            f"the inputs are more than the {MAX_BYTES >> 20} MiB that are held in memory; "
            "give fewer or smaller ones, or fewer --rows-per-call"
        )
