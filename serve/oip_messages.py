"""Messages of package ``inference`` to calls, and answers to messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from edgewright.errors import InputError
from edgewright.oip import inference_pb2
from edgewright.serve.inference import InferCall, RequestedTensor, classes_asked, refuse_parameters
from edgewright.serve.models import ServedModel
from edgewright.serve.tensors import BYTES, FP32, INT64, AnswerTensor, GivenTensor, fault

_NO_VALUES: Final[Mapping[str, Any]] = MappingProxyType({})
_FIELDS: Final = {BYTES: "bytes_contents", INT64: "int64_contents", FP32: "fp32_contents"}


def infer_call(request: inference_pb2.ModelInferRequest) -> InferCall:
    """What a request asks.

    Raises:
        InputError: contents that are raw and typed at once or not one for each input, or a
            parameter of a tensor that is not supported.
    """
    return InferCall(
        model=request.model_name,
        version=request.model_version,
        inputs=_inputs(request),
        outputs=[
            RequestedTensor(each.name, classes_asked(each.name, _values(each.parameters)))
            for each in request.outputs
        ],
        parameters=_values(request.parameters),
    )


def infer_response(
    request: inference_pb2.ModelInferRequest, model: ServedModel, tensors: Sequence[AnswerTensor]
) -> inference_pb2.ModelInferResponse:
    """The answer, in raw contents where the request had such."""
    response = inference_pb2.ModelInferResponse(
        model_name=model.name, model_version=str(model.version), id=request.id
    )
    raw = bool(request.raw_input_contents)
    for name, datatype, shape, values in tensors:  # written where they belong, so not copied
        output = response.outputs.add(name=name, datatype=datatype, shape=shape)
        if not raw:
            getattr(output.contents, _FIELDS[datatype]).extend(values)
    if raw:
        response.raw_output_contents.extend([each.raw() for each in tensors])
    return response


def _inputs(request: inference_pb2.ModelInferRequest) -> list[GivenTensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InputError(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs; "
            "give one for each",
            field="raw_input_contents",
        )
    given = []
    for place, each in enumerate(request.inputs):
        # MLServer's clients say of BYTES that they are strings.
        refuse_parameters(each.name, _values(each.parameters), ("content_type",))
        content = raw[place] if raw else _typed(each)
        if raw and each.HasField("contents"):
            raise fault(each.name, "has contents beside raw_input_contents; give one of them")
        given.append(GivenTensor(each.name, each.datatype, tuple(each.shape), content))
    return given


def _typed(tensor: inference_pb2.ModelInferRequest.InferInputTensor) -> Sequence[Any]:
    wanted = _FIELDS.get(tensor.datatype, "")
    for descriptor, values in tensor.contents.ListFields():
        if descriptor.name != wanted:
            raise fault(
                tensor.name,
                f"of datatype {tensor.datatype!r:.100} has {len(values)} elements in "
                f"{descriptor.name}; {wanted or 'BYTES, INT64 or FP32'} is expected",
            )
    return getattr(tensor.contents, wanted) if wanted else ()


def _values(parameters: Mapping[str, inference_pb2.InferParameter]) -> Mapping[str, Any]:
    if not parameters:
        return _NO_VALUES
    values = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, choice) if choice else None
    return values
