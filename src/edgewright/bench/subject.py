"""The model that is asked: found, and tried once, so that faults are told before any load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from edgewright.answers import ModelState, served_model
from edgewright.bench.config import Protocol
from edgewright.bench.inputs import Inputs
from edgewright.bench.requests import Requests, edgewright_requests, oip_requests
from edgewright.connection import Connection
from edgewright.errors import ConfigError, NotReadyError, ServiceError
from edgewright.failed_call import explained

_IMAGE_TASK: Final = "image-classification"


@dataclass(frozen=True)
class Subject:
    """A model as its server describes it; what the protocol does not tell is empty."""

    protocol: Protocol
    name: str
    version: str
    task: str = ""
    variant: str = ""
    runtime: str = ""
    manifest_sha256: str = ""

    def __str__(self) -> str:
        served = f" ({self.variant} on {self.runtime})" if self.variant else ""
        return f"{self.name} version {self.version}{served}"

    def to_json(self) -> dict[str, Any]:
        """As results name it."""
        told = ("name", "version", "task", "variant", "runtime", "manifest_sha256")
        return {name: getattr(self, name) or None for name in told}


@dataclass(frozen=True)
class Asked:
    """What the user wants to be asked."""

    model: str
    rows: int  # in each call
    inputs: Callable[[str], Inputs]  # given what the model takes: "image", or what else is text


def prepare(
    protocol: Protocol, connection: Connection, asked: Asked
) -> tuple[Subject, Inputs, Requests]:
    """Find the model, make its requests, and have the first of them answered.

    Raises:
        NotReadyError: no server answers there, or the model is still loading.
        ModelNotFoundError: it has no such model.
        ConfigError: the model takes other inputs than those given.
        EdgewrightError: what else the first answer was.
    """
    find = _find_oip if protocol is Protocol.OIP else _find_edgewright
    subject, inputs, requests = find(connection, asked)
    with connection.channel() as channel:
        method = channel.unary_unary(requests.method)
        answer = _answered(connection, protocol, method, requests.messages[0])
    _check(answer, protocol, inputs, asked.rows, connection.target)
    return subject, inputs, requests


def _find_edgewright(connection: Connection, asked: Asked) -> tuple[Subject, Inputs, Requests]:
    from edgewright.v1 import model_pb2

    target = connection.target
    with connection.channel() as channel:
        method = channel.unary_unary(
            "/edgewright.v1.ModelService/GetModel",
            model_pb2.GetModelRequest.SerializeToString,
            model_pb2.GetModelResponse.FromString,
        )
        request = model_pb2.GetModelRequest(model=asked.model)
        model = served_model(_answered(connection, Protocol.EDGEWRIGHT, method, request).model)
    if model.state is not ModelState.READY:
        raise NotReadyError(
            f"{target}: model {model.name} is {model.state.lower()}; wait until it is ready"
        )
    kind = "image" if model.task == _IMAGE_TASK else "text"
    inputs = asked.inputs(kind)
    if inputs.kind != kind:
        raise ConfigError(
            f"{target}: model {model.name} classifies {kind}s, and {inputs.kind}s are given"
        )
    subject = Subject(
        Protocol.EDGEWRIGHT,
        model.name,
        str(model.version),
        model.task,
        model.variant,
        model.runtime,
        model.manifest_sha256,
    )
    return subject, inputs, edgewright_requests(inputs, asked.rows, model.name)


def _find_oip(connection: Connection, asked: Asked) -> tuple[Subject, Inputs, Requests]:
    from edgewright.oip import inference_pb2

    if not asked.model:
        raise ConfigError("--model: the Open Inference Protocol wants the model's name")
    with connection.channel() as channel:
        method = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelMetadata",
            inference_pb2.ModelMetadataRequest.SerializeToString,
            inference_pb2.ModelMetadataResponse.FromString,
        )
        request = inference_pb2.ModelMetadataRequest(name=asked.model)
        model = _answered(connection, Protocol.OIP, method, request)
    takes = [each for each in model.inputs if each.datatype == "BYTES"]
    if not takes:
        listed = ", ".join(f"{each.name} {each.datatype}" for each in model.inputs)
        raise ConfigError(
            f"{connection.target}: model {asked.model} takes no BYTES, which texts and images are "
            f"sent as; it takes {listed or 'nothing'}"
        )
    tensor = takes[0]
    inputs = asked.inputs(tensor.name)
    if tensor.name in ("text", "image") and tensor.name != inputs.kind:
        raise ConfigError(
            f"{connection.target}: model {asked.model} takes {tensor.name}s, and {inputs.kind}s "
            "are given"
        )
    rank = max(len(tensor.shape), 1)
    version = model.versions[-1] if model.versions else ""
    subject = Subject(Protocol.OIP, asked.model, version, runtime=model.platform)
    return subject, inputs, oip_requests(inputs, asked.rows, asked.model, tensor.name, rank)


def _answered(connection: Connection, protocol: Protocol, method: Any, request: Any) -> Any:
    """The answer to one call, or the exception that its failure stands for."""
    target = connection.target
    try:
        return method(request, timeout=connection.timeout_s, metadata=connection.metadata)
    except grpc.RpcError as error:
        failure: Any = error
        told = explained(failure, target, connection.timeout_s)
        if failure.code() is not grpc.StatusCode.UNIMPLEMENTED:
            raise told from error
        if protocol is Protocol.EDGEWRIGHT:
            raise ServiceError(
                f"{told}, or --protocol oip for one of KServe's or Triton's"
            ) from error
        raise ServiceError(
            f"{target} is a gRPC server, but it does not speak the Open Inference Protocol "
            f"({failure.details()})"
        ) from error


def _check(answer: bytes, protocol: Protocol, inputs: Inputs, rows: int, target: str) -> None:
    """Raise ServiceError where the first answer is not one for each row."""
    try:
        count = _rows_answered(answer, protocol, inputs)
    except DecodeError as error:
        raise ServiceError(f"{target}: the first answer cannot be read: {error}") from error
    if count != rows:
        raise ServiceError(f"{target}: the first call had {rows} rows, its answer {count}")


def _rows_answered(answer: bytes, protocol: Protocol, inputs: Inputs) -> int:
    if protocol is Protocol.OIP:
        from edgewright.oip import inference_pb2

        outputs = inference_pb2.ModelInferResponse.FromString(answer).outputs
        return int(outputs[0].shape[0]) if outputs and outputs[0].shape else 0
    from edgewright.v1 import prediction_pb2

    kind: Any = (
        prediction_pb2.ClassifyTextResponse
        if inputs.kind == "text"
        else prediction_pb2.ClassifyImageResponse
    )
    return len(kind.FromString(answer).classifications)
