"""A model's configuration as Triton's tools ask for it, as a message and in JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from edgewright.oip import inference_pb2
from edgewright.serve.inference import PLATFORM
from edgewright.serve.model_tensors import array_types, example_type, extra_types, output_types
from edgewright.serve.models import ServedModel
from edgewright.serve.tensors import BYTES, FP32, INT64, TensorType

_DATA_TYPES: Final = {
    BYTES: inference_pb2.TYPE_STRING,
    INT64: inference_pb2.TYPE_INT64,
    FP32: inference_pb2.TYPE_FP32,
}


def model_config(model: ServedModel, max_rows: int) -> inference_pb2.ModelConfig:
    """What Triton's tools ask before they call."""
    inputs = [_input(example_type(model))]
    inputs += [_input(each, optional=True) for each in array_types(model)]
    outputs = [
        inference_pb2.ModelOutput(
            name=each.name, data_type=_DATA_TYPES[each.datatype], dims=each.shape[1:]
        )
        for each in (*output_types(model), *extra_types(model))
    ]
    return inference_pb2.ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend=model.variant.backend,
        max_batch_size=max_rows,
        input=inputs,
        output=outputs,
        dynamic_batching=inference_pb2.ModelDynamicBatching(),
    )


def config_json(config: inference_pb2.ModelConfig) -> dict[str, Any]:
    """The same with sides as numbers, where protobuf's own JSON has strings."""
    return {
        "name": config.name,
        "platform": config.platform,
        "backend": config.backend,
        "max_batch_size": config.max_batch_size,
        "input": _tensors(config.input),
        "output": _tensors(config.output),
        "dynamic_batching": {},
    }


def _input(each: TensorType, *, optional: bool = False) -> inference_pb2.ModelInput:
    return inference_pb2.ModelInput(
        name=each.name,
        data_type=_DATA_TYPES[each.datatype],
        dims=each.shape[1:],
        optional=optional,
    )


def _tensors(
    tensors: Iterable[inference_pb2.ModelInput | inference_pb2.ModelOutput],
) -> list[dict[str, Any]]:
    return [_tensor(each) for each in tensors]


def _tensor(each: inference_pb2.ModelInput | inference_pb2.ModelOutput) -> dict[str, Any]:
    data_type = inference_pb2.DataType.Name(each.data_type)
    told: dict[str, Any] = {"name": each.name, "data_type": data_type, "dims": list(each.dims)}
    if isinstance(each, inference_pb2.ModelInput):
        told["optional"] = each.optional
    return told
