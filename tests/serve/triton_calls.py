"""Run by test_tritonclient.py in an environment without edgewright: KIND TARGET PICTURE(hex).

Prints what tritonclient was told, as JSON.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from typing import Any

import numpy as np


async def maybe(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def given(module: Any, name: str, datatype: str, array: Any) -> Any:
    made = module.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def as_json(config: Any) -> dict[str, Any]:
    """A configuration, by the names that tritonclient's own .proto gives to what came."""
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.unknown_fields import UnknownFieldSet

    for each in (config, *config.input, *config.output):
        assert not len(UnknownFieldSet(each)), each
    return MessageToDict(config, preserving_proto_field_name=True)


async def failure(call: Any, kind: type[Exception]) -> list[str]:
    try:
        await maybe(call())
    except kind as error:
        return [str(error.status()), str(error.message())]
    return ["OK", ""]


async def main(kind: str, target: str, picture: bytes) -> dict[str, Any]:
    if kind == "sync":
        import tritonclient.grpc as module
    elif kind == "aio":
        import tritonclient.grpc.aio as module
    else:
        import tritonclient.http as module
    from tritonclient.utils import InferenceServerException

    client = module.InferenceServerClient(target)
    texts = np.array([b"bank shares", b"team wins"], np.object_)
    text = given(module, "text", "BYTES", texts)
    image = given(module, "image", "BYTES", np.array([[picture]], np.object_))
    blue = np.zeros((1, 3, 8, 8), np.float32)
    blue[:, 2] = 1
    extra = {} if kind == "http" else {"client_timeout": 30}
    answer = await maybe(client.infer("news", [text], request_id="7", **extra))
    asked = [module.InferRequestedOutput("scores", class_count=1)]
    best = await maybe(client.infer("news", [text], outputs=asked))
    seen = await maybe(client.infer("colours", [image]))
    dense = await maybe(client.infer("colours", [given(module, "pixel_values", "FP32", blue)]))
    metadata = await maybe(client.get_model_metadata("news"))
    config = await maybe(client.get_model_config("news"))
    if kind != "http":
        metadata = {"inputs": [{"name": each.name} for each in metadata.inputs]}
        config = as_json(config.config)
        assert answer.get_response().id == "7"
    wrong = [module.InferRequestedOutput("embedding")]
    told = {
        "labels": [each.decode() for each in answer.as_numpy("label")],
        "score": answer.as_numpy("score").tolist(),
        "scores_shape": list(answer.as_numpy("scores").shape),
        "best": best.as_numpy("scores")[0][0].decode(),
        "picture": seen.as_numpy("label")[0].decode(),
        "pixels": dense.as_numpy("label")[0].decode(),
        "live": await maybe(client.is_server_live()),
        "ready": await maybe(client.is_server_ready()),
        "model_ready": await maybe(client.is_model_ready("news", "1")),
        "other_ready": await maybe(client.is_model_ready("wine")),
        "inputs": [each["name"] for each in metadata["inputs"]],
        "config": {
            name: config[name] for name in ("name", "platform", "backend", "max_batch_size")
        },
        "tensors": {
            each["name"]: [each["data_type"], [int(side) for side in each.get("dims", [])]]
            for each in (*config["input"], *config["output"])
        },
        "errors": {
            "bad": await failure(
                lambda: client.infer("news", [text], outputs=wrong), InferenceServerException
            ),
            "unknown": await failure(
                lambda: client.infer("wine", [text]), InferenceServerException
            ),
        },
    }
    await maybe(client.close())
    return told


print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])))))
