"""A server of edgewright.v1 that does as a test says: for the client's tests.

with FakeServer() as server:
    server.failures.append(OverloadedError("full", retry_after_s=0.1))
    Client(server.target).classify("text")
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import grpc

from edgewright.errors import ModelNotFoundError
from edgewright.rpc_errors import STATUS_METADATA_KEY, to_status
from edgewright.v1 import model_pb2, model_pb2_grpc, prediction_pb2, prediction_pb2_grpc

LABELS = ("business", "sport")
CODES = {code.value[0]: code for code in grpc.StatusCode}


def label_of(text: str) -> str:
    """What the fake model says of a text."""
    return "sport" if "won" in text else "business"


class FakeServer(
    prediction_pb2_grpc.PredictionServiceServicer, model_pb2_grpc.ModelServiceServicer
):
    """Answers from ``label_of``; each of ``failures`` (an exception, or a bare code) comes first.

    ``refuse`` gives the exception that a request earns, ``most_answers`` cuts what is given back.
    """

    def __init__(self, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> None:
        self.failures: list[BaseException | grpc.StatusCode] = []
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []  # that came with each
        self.time_remaining_s: list[float | None] = []
        self.models = [
            model_pb2.Model(
                name="news", version=1, state=model_pb2.MODEL_STATE_READY, labels=LABELS
            )
        ]
        self.refuse: Callable[[Any], BaseException | None] = lambda request: None
        self.most_answers: int | None = None
        self.hold = threading.Event()  # calls wait until it is set
        self.hold.set()
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(
            self._pool, options=[("grpc.max_receive_message_length", 16 << 20)]
        )
        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{port}"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)
        self.target = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self.die()

    def die(self) -> None:
        """End; calls that are held are never answered."""
        ended = self._server.stop(None)
        self.hold.set()
        ended.wait()
        self._pool.shutdown()

    def ClassifyText(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 gRPC's
        self._arrived(request, context)
        if request.model not in ("", *(model.name for model in self.models)):
            _abort(context, ModelNotFoundError(f"no model {request.model!r}; it holds: news"))
        answers = [_answer(text, request.top_k) for text in request.texts][: self.most_answers]
        return prediction_pb2.ClassifyTextResponse(
            model=request.model, version=1, classifications=answers
        )

    def ClassifyImage(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Answers as if the bytes of an image were a text."""
        self._arrived(request, context)
        answers = [_answer(image.decode("latin-1"), request.top_k) for image in request.images]
        return prediction_pb2.ClassifyImageResponse(
            model=request.model, version=1, classifications=answers[: self.most_answers]
        )

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._arrived(request, context)
        return model_pb2.ListModelsResponse(models=self.models)

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._arrived(request, context)
        for model in self.models:
            if request.model in ("", model.name):
                return model_pb2.GetModelResponse(model=model)
        _abort(context, ModelNotFoundError(f"no model {request.model!r}"))
        raise AssertionError("abort returns")

    def _arrived(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.time_remaining_s.append(context.time_remaining())
        self.hold.wait(10)
        failure = self.failures.pop(0) if self.failures else self.refuse(request)
        if failure is not None:
            _abort(context, failure)


def _answer(text: str, top_k: int) -> Any:
    best = label_of(text)
    scores = [(best, 0.75), *((label, 0.25) for label in LABELS if label != best)]
    return prediction_pb2.Classification(
        prediction_id=uuid.uuid4().hex,
        label=best,
        score=0.75,
        scores=[
            prediction_pb2.ClassScore(label=label, score=score)
            for label, score in scores[: top_k or None]
        ],
        truncated=len(text) > 1000,
    )


def _abort(context: grpc.ServicerContext, failure: BaseException | grpc.StatusCode) -> None:
    if isinstance(failure, grpc.StatusCode):
        context.abort(failure, "said by the test")
        return
    status: Any = to_status(failure)
    context.set_trailing_metadata(((STATUS_METADATA_KEY, status.SerializeToString()),))
    context.abort(CODES[status.code], status.message)
