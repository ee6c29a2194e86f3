"""How a text is asked of each server, and where its answer has the scores."""

from __future__ import annotations

import json
import struct
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc
import numpy as np
from numpy.typing import NDArray

from edgewright.oip.inference_pb2 import ModelInferRequest, ModelInferResponse
from edgewright.v1.prediction_pb2 import ClassifyTextRequest, ClassifyTextResponse

MODEL: Final = "texts"
_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True)
class Protocol:
    """A call with one text.

    Attributes:
        transport: "grpc" or "http".
        path: of the method.
        encode: the body for a text.
        decode: scores in the order of the labels, from a body and the labels.
    """

    transport: str
    path: str
    encode: Callable[[str], bytes]
    decode: Callable[[bytes, Sequence[str]], NDArray[np.float64]]
    headers: Mapping[str, str] = field(default_factory=dict)

    def ask(self, port: int, text: str, labels: Sequence[str]) -> NDArray[np.float64]:
        """One call, by an ordinary client.

        Raises:
            OSError, grpc.RpcError, ValueError: nobody answers, or not as expected.
        """
        send = _call if self.transport == "grpc" else _post
        return self.decode(send(port, self, self.encode(text)), labels)


def _call(port: int, protocol: Protocol, body: bytes) -> bytes:
    # A pool that is shared would remember, and wait after, the attempts that nobody answered.
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        return bytes(channel.unary_unary(protocol.path)(body, timeout=_TIMEOUT_S))


def _post(port: int, protocol: Protocol, body: bytes) -> bytes:
    url = f"http://127.0.0.1:{port}{protocol.path}"
    request = urllib.request.Request(url, body, dict(protocol.headers))
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        return bytes(response.read())


def _typed_scores(body: bytes, labels: Sequence[str]) -> NDArray[np.float64]:
    found = ClassifyTextResponse.FromString(body).classifications[0]
    by_label = {each.label: each.score for each in found.scores}
    return np.array([by_label[label] for label in labels])


def _tensors(text: str) -> bytes:
    encoded = text.encode()
    request = ModelInferRequest(
        model_name=MODEL,
        inputs=[ModelInferRequest.InferInputTensor(name="text", datatype="BYTES", shape=[1, 1])],
        raw_input_contents=[struct.pack("<I", len(encoded)) + encoded],
    )
    return request.SerializeToString()


def _tensor_scores(body: bytes, _labels: Sequence[str]) -> NDArray[np.float64]:
    response = ModelInferResponse.FromString(body)
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[0], "<f4").astype(np.float64)
    contents = response.outputs[0].contents
    return np.array(contents.fp32_contents or contents.fp64_contents)


_JSON: Final = {"content-type": "application/json"}
TYPED: Final = Protocol(
    "grpc",
    "/edgewright.v1.PredictionService/ClassifyText",
    lambda text: ClassifyTextRequest(texts=[text]).SerializeToString(),
    _typed_scores,
)
TENSORS: Final = Protocol(
    "grpc", "/inference.GRPCInferenceService/ModelInfer", _tensors, _tensor_scores
)
LITSERVE: Final = Protocol(
    "http",
    "/predict",
    lambda text: json.dumps({"text": text}).encode(),
    lambda body, _labels: np.array(json.loads(body)["scores"]),
    _JSON,
)
BENTOML: Final = Protocol(
    "http",
    "/classify",
    lambda text: json.dumps({"texts": [text]}).encode(),
    lambda body, _labels: np.array(json.loads(body)[0]),
    _JSON,
)
