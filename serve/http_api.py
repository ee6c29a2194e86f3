"""What the HTTP port answers: probes, metrics, the Open Inference Protocol, and plain JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

import grpc
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from edgewright.serve.call_observer import CODES, CallObserver
from edgewright.serve.call_record import CallRecord
from edgewright.serve.callers import Callers, Peer
from edgewright.serve.http_answers import failed_answer, yes_or_no
from edgewright.serve.http_messages import Request, Response, error_answer
from edgewright.serve.http_models import HttpModels
from edgewright.serve.predictor import Predictor
from edgewright.serve.shutting_down import shutting_down
from edgewright.serve.tokens import Right

_MODEL: Final = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"

_PLACES: Final = (  # told to whoever asks elsewhere
    "GET /v2/models/MODEL describes a model, POST /v2/models/MODEL/infer and "
    "/v1/models/MODEL:classify call it, GET /metrics, /healthz and /readyz are for who watches"
)


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
        models = HttpModels(predictor, watched.ready)
        self._watched = watched
        self._observer = observer
        self._callers = None if callers is None or callers.open else callers
        self._draining = False
        routes = (
            ("GET", "/metrics", self._metrics, "", Right.METRICS),
            ("GET", "/healthz", self._healthz, "", None),
            ("GET", "/readyz", self._readyz, "", None),
            ("GET", "/v2", models.server_metadata, "", Right.CALL),
            ("GET", "/v2/health/live", self._healthz, "", None),
            ("GET", "/v2/health/ready", self._readyz, "", None),
            ("GET", _MODEL, models.model_metadata, "http/ModelMetadata", Right.CALL),
            ("GET", _MODEL + "/config", models.model_config, "http/ModelConfig", Right.CALL),
            ("GET", _MODEL + "/ready", models.model_ready, "", Right.CALL),
            ("POST", _MODEL + "/infer", models.infer, "http/ModelInfer", Right.CALL),
            (
                "POST",
                "/v1/models/(?P<model>[^/]+):classify",
                models.classify,
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
            return error_answer(
                HTTPStatus.NOT_FOUND, f"nothing is at {request.path[:200]!r}; {_PLACES}"
            )
        method = "GET" if request.method == "HEAD" else request.method
        for route, match in found:
            if route.method == method:
                groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
                return await self._answered(route, request, groups)
        method = found[0][0].method
        allowed = {"Allow": "GET, HEAD" if method == "GET" else method}
        return error_answer(HTTPStatus.METHOD_NOT_ALLOWED, f"the method is {method}", allowed)

    async def _answered(
        self, route: _Route, request: Request, groups: Mapping[str, str]
    ) -> Response:
        record = self._observer.arrived(request.headers.items())
        if not route.call:
            record.method = request.path[:200]  # for the log: such a call is not counted
            try:
                return await self._let_in(route, record, request, groups)
            except Exception as error:  # the edge, as below
                return failed_answer(error, self._observer.failed(record, error))
        self._observer.begin(record, route.call, lambda: request.peer)
        code = grpc.StatusCode.OK
        self.in_flight += 1
        try:
            if self._draining:
                raise shutting_down()
            response = await self._let_in(route, record, request, groups)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # the edge, as gRPC's: nothing may reach the wire as it is
            status = self._observer.failed(record, error)
            code = CODES[status.code]
            response = failed_answer(error, status)
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
        caller = self._callers.enter(route.right, peer, record)
        try:
            return await route.answer(request, groups)
        finally:
            self._callers.leave(caller)

    async def _metrics(self, request: Request, _groups: Mapping[str, str]) -> Response:
        encode, content_type = _encoder(request.headers.get("accept", ""))
        page = await asyncio.to_thread(encode, self._watched.metrics)
        return Response(HTTPStatus.OK, content_type, page)

    async def _healthz(self, _request: Request, _groups: Mapping[str, str]) -> Response:
        return yes_or_no(self._watched.alive())

    async def _readyz(self, _request: Request, _groups: Mapping[str, str]) -> Response:
        return yes_or_no(self._watched.ready())


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    """In what format, and what that is called; plain text for who asks for what there is not."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # of a version that is no number
        return choose_encoder("")
