"""What the HTTP port answers: probes, metrics, the Open Inference Protocol, and plain JSON."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import grpc
from google.rpc.status_pb2 import Status
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from edgewright import __version__
from edgewright.errors import (
    EdgewrightError,
    InputError,
    NotReadyError,
    OverloadedError,
    UnauthenticatedError,
)
from edgewright.kinds import IMAGE
from edgewright.rpc_errors import reason_of
from edgewright.serve.call_observer import CODES, CallObserver
from edgewright.serve.call_record import CallRecord
from edgewright.serve.callers import Callers, Peer
from edgewright.serve.http_server import Request, Response
from edgewright.serve.inference import EXTENSIONS, PLATFORM, Inference
from edgewright.serve.json_input import from_base64, json_object, refuse_keys, taken, utf8
from edgewright.serve.model_tensors import array_types, example_type, extra_types, output_types
from edgewright.serve.models import ServedModel
from edgewright.serve.oip_config import config_json, model_config
from edgewright.serve.oip_json import answer_body, metadata, parse_call
from edgewright.serve.predictor import Predicted, Predictor
from edgewright.serve.tokens import Right

TIMEOUT_HEADER: Final = "x-timeout-ms"
LONGEST_S: Final = 60.0  # that a call may take, whatever it says
_IN_PLACE_BYTES: Final = 16 << 10  # a larger body is parsed beside the event loop
_TEXT: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_MODEL: Final = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"
_STATUSES: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}

T = TypeVar("T")


@dataclass(frozen=True)
class Watched:
    """What the probes tell of."""

    metrics: CollectorRegistry
    alive: Callable[[], bool]  # restart the process when it is not
    ready: Callable[[], bool]  # send it calls when it is


@dataclass(frozen=True)
class _Route:
    """A path, its method, and who answers; ``call`` is counted and waited for by a drain.

    ``right`` is what its caller needs, None where everybody may.
    """

    method: str
    path: re.Pattern[str]
    answer: Callable[[Request, Mapping[str, str]], Awaitable[Response]]
    call: str
    right: Right | None


class HttpApi:
    """Answers requests; ``drain`` makes it refuse new calls. Lives on the event loop."""

    def __init__(
        self,
        predictor: Predictor,
        watched: Watched,
        observer: CallObserver,
        callers: Callers | None = None,
    ) -> None:
        self.in_flight = 0
        self._predictor = predictor
        self._inference = Inference(predictor)
        self._watched = watched
        self._observer = observer
        self._callers = None if callers is None or callers.open else callers
        self._draining = False
        routes = (
            ("GET", "/metrics", self._metrics, "", Right.METRICS),
            ("GET", "/healthz", self._healthz, "", None),
            ("GET", "/readyz", self._readyz, "", None),
            ("GET", "/v2", self._server_metadata, "", Right.CALL),
            ("GET", "/v2/health/live", self._healthz, "", None),
            ("GET", "/v2/health/ready", self._readyz, "", None),
            ("GET", _MODEL, self._model_metadata, "http/ModelMetadata", Right.CALL),
            ("GET", _MODEL + "/config", self._model_config, "http/ModelConfig", Right.CALL),
            ("GET", _MODEL + "/ready", self._model_ready, "", Right.CALL),
            ("POST", _MODEL + "/infer", self._infer, "http/ModelInfer", Right.CALL),
            (
                "POST",
                "/v1/models/(?P<model>[^/]+):classify",
                self._classify,
                "http/Classify",
                Right.CALL,
            ),
        )
        self._routes = [
            _Route(method, re.compile(path), answer, call, right)
            for method, path, answer, call, right in routes
        ]

    def drain(self) -> None:
        """Refuse new calls; probes go on."""
        self._draining = True

    async def answer(self, request: Request) -> Response:
        """The answer, whatever goes wrong on the way."""
        matches = [(each, each.path.fullmatch(request.path)) for each in self._routes]
        found = [(route, match) for route, match in matches if match]
        if not found:
            return _error(HTTPStatus.NOT_FOUND, f"nothing is at {request.path[:200]!r}")
        method = "GET" if request.method == "HEAD" else request.method
        for route, match in found:
            if route.method == method:
                groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
                return await self._answered(route, request, groups)
        allowed = {"Allow": found[0][0].method}
        return _error(HTTPStatus.METHOD_NOT_ALLOWED, f"the method is {allowed['Allow']}", allowed)

    async def _answered(
        self, route: _Route, request: Request, groups: Mapping[str, str]
    ) -> Response:
        record = self._observer.arrived(request.headers.items())
        if not route.call:
            try:
                return await self._let_in(route, record, request, groups)
            except EdgewrightError as error:
                return _failed(error, self._observer.failed(record, error))
        self._observer.begin(record, route.call, lambda: request.peer)
        code = grpc.StatusCode.OK
        self.in_flight += 1
        try:
            if self._draining:
                raise NotReadyError("the server is shutting down; call another replica")
            response = await self._let_in(route, record, request, groups)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # the edge, as gRPC's: nothing may reach the wire as it is
            status = self._observer.failed(record, error)
            code = CODES[status.code]
            response = _failed(error, status)
        finally:
            self.in_flight -= 1
            self._observer.end(record, code)
        named = {**response.headers, "X-Request-Id": record.request_id}
        return replace(response, headers=named)

    async def _let_in(
        self, route: _Route, record: CallRecord, request: Request, groups: Mapping[str, str]
    ) -> Response:
        """The answer to who may have it; else raises as ``Callers.enter``."""
        if self._callers is None:
            return await route.answer(request, groups)
        header = request.headers.get("authorization", "")
        address = request.peer.rpartition(":")[0]
        peer = Peer(address, header, request.subject)
        caller = record.known_as = self._callers.enter(route.right, peer)
        try:
            return await route.answer(request, groups)
        finally:
            self._callers.leave(caller)

    async def _metrics(self, request: Request, _groups: Mapping[str, str]) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        page = await asyncio.to_thread(encode, self._watched.metrics)
        return Response(HTTPStatus.OK, content_type, page)

    async def _healthz(self, _request: Request, _groups: Mapping[str, str]) -> Response:
        return _yes_or_no(self._watched.alive())

    async def _readyz(self, _request: Request, _groups: Mapping[str, str]) -> Response:
        return _yes_or_no(self._watched.ready())

    async def _server_metadata(self, _request: Request, _groups: Mapping[str, str]) -> Response:
        return _json({"name": PLATFORM, "version": __version__, "extensions": EXTENSIONS})

    async def _model_ready(self, _request: Request, groups: Mapping[str, str]) -> Response:
        try:
            ready = self._inference.is_model_ready(groups["model"], groups["version"])
        except InputError as error:
            return _error(HTTPStatus.BAD_REQUEST, str(error))
        return _yes_or_no(ready and self._watched.ready())

    async def _model_metadata(self, _request: Request, groups: Mapping[str, str]) -> Response:
        model = self._inference.model(groups["model"], groups["version"])
        inputs = [example_type(model), *array_types(model)]
        outputs = [*output_types(model), *extra_types(model)]
        versions = self._inference.versions(model.name)
        return _json(metadata(model, versions, inputs, outputs, PLATFORM))

    async def _model_config(self, _request: Request, groups: Mapping[str, str]) -> Response:
        model = self._inference.model(groups["model"], groups["version"])
        return _json(config_json(model_config(model, self._inference.max_rows)))

    async def _infer(self, request: Request, groups: Mapping[str, str]) -> Response:
        end = request.headers.get("inference-header-content-length")
        asked = await _parsed(
            request.body, lambda body: parse_call(body, end, groups["model"], groups["version"])
        )
        model, tensors = await self._inference.infer(asked.call, _time_left_s(request))
        body, json_bytes = answer_body(asked, model, tensors)
        if json_bytes is None:
            return Response(HTTPStatus.OK, _JSON, body)
        headers = {"Inference-Header-Content-Length": str(json_bytes)}
        return Response(HTTPStatus.OK, "application/octet-stream", body, headers)

    async def _classify(self, request: Request, groups: Mapping[str, str]) -> Response:
        given = await _parsed(request.body, json_object)
        refuse_keys("the request", given, ("texts", "images", "top_k", "version"))
        top_k, version = taken(given, "top_k", int, 0), taken(given, "version", int, 0)
        model = self._predictor.registry.route(groups["model"], version)
        wanted = model.kind.many
        if set(given) & {"texts", "images"} != {wanted}:
            raise InputError(
                f"{model.name} classifies {wanted}; give {wanted}: [...]", field=wanted
            )
        inputs, left_s = taken(given, wanted, list), _time_left_s(request)
        if model.kind is IMAGE:
            files = [from_base64(each, f"images[{i}]") for i, each in enumerate(inputs)]
            predicted = await self._predictor.images(model, files, left_s, top_k)
        else:
            texts = [utf8(each, f"texts[{i}]").decode() for i, each in enumerate(inputs)]
            predicted = await self._predictor.texts(model, texts, left_s, top_k)
        answers = [_classification(model, each, top_k) for each in predicted]
        return _json({"model": model.name, "version": model.version, "classifications": answers})


async def _parsed(body: bytes, parse: Callable[[bytes], T]) -> T:
    if len(body) <= _IN_PLACE_BYTES:
        return parse(body)
    return await asyncio.to_thread(parse, body)


def _time_left_s(request: Request) -> float:
    told = request.headers.get(TIMEOUT_HEADER)
    if told is None:
        return LONGEST_S
    if not re.fullmatch("[0-9]{1,9}", told):
        raise InputError(
            f"the header {TIMEOUT_HEADER} is {told!r:.100}; milliseconds are expected",
            field=TIMEOUT_HEADER,
        )
    return min(int(told) / 1000, LONGEST_S)


def _classification(model: ServedModel, predicted: Predicted, top_k: int) -> dict[str, Any]:
    answer = predicted.answer
    pairs = zip(answer.classes[: top_k or None], answer.scores[: top_k or None], strict=True)
    scores = [{"label": model.labels[index], "score": score} for index, score in pairs]
    return {
        "prediction_id": predicted.prediction_id,
        **scores[0],
        "scores": scores,
        "truncated": answer.truncated,
    }


def _json(told: Mapping[str, Any]) -> Response:
    return Response(HTTPStatus.OK, _JSON, json.dumps(told).encode())


def _error(
    status: HTTPStatus, message: str, headers: Mapping[str, str] = {}, reason: str = ""
) -> Response:
    told = {"error": message, "reason": reason} if reason else {"error": message}
    return Response(status, _JSON, json.dumps(told).encode(), headers)


def _failed(error: Exception, told: Status) -> Response:
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    status = _STATUSES.get(CODES[told.code], HTTPStatus.INTERNAL_SERVER_ERROR)
    return _error(status, told.message, headers, reason_of(error))


def _yes_or_no(yes: bool) -> Response:
    status = HTTPStatus.OK if yes else HTTPStatus.SERVICE_UNAVAILABLE
    return Response(status, _TEXT, status.phrase.encode() + b"\n")
