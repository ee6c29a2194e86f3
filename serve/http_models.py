"""Models over HTTP: the Open Inference Protocol, and plain JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, TypeVar

from edgewright import __version__
from edgewright.errors import InputError
from edgewright.kinds import IMAGE
from edgewright.serve.http_answers import json_answer, yes_or_no
from edgewright.serve.http_messages import JSON, Request, Response, error_answer
from edgewright.serve.inference import EXTENSIONS, PLATFORM, Inference
from edgewright.serve.json_input import from_base64, json_object, refuse_keys, taken, utf8
from edgewright.serve.model_tensors import array_types, example_type, extra_types, output_types
from edgewright.serve.models import ServedModel
from edgewright.serve.oip_config import config_json, model_config
from edgewright.serve.oip_json import answer_body, metadata, parse_call
from edgewright.serve.predictor import Predicted, Predictor

TIMEOUT_HEADER: Final = "x-timeout-ms"
LONGEST_S: Final = 60.0  # that a call may take, whatever it says
_IN_PLACE_BYTES: Final = 16 << 10  # a larger body is parsed beside the event loop

T = TypeVar("T")


class HttpModels:
    """Describes models and computes with them. Lives on the event loop.

    Its methods are given a request, and the ``model`` and ``version`` of its path.
    """

    def __init__(self, predictor: Predictor, ready: Callable[[], bool]) -> None:
        """``ready`` tells whether the server as a whole is."""
        self._predictor = predictor
        self._inference = Inference(predictor)
        self._ready = ready

    async def server_metadata(self, _request: Request, _groups: Mapping[str, str]) -> Response:
        """What the server is."""
        return json_answer({"name": PLATFORM, "version": __version__, "extensions": EXTENSIONS})

    async def model_ready(self, _request: Request, groups: Mapping[str, str]) -> Response:
        """Whether the model answers calls."""
        try:
            ready = self._inference.is_model_ready(groups["model"], groups["version"])
        except InputError as error:
            return error_answer(HTTPStatus.BAD_REQUEST, str(error))
        return yes_or_no(ready and self._ready())

    async def model_metadata(self, _request: Request, groups: Mapping[str, str]) -> Response:
        """Names, types and shapes of what goes in and comes out."""
        model = self._inference.model(groups["model"], groups["version"])
        inputs = [example_type(model), *array_types(model)]
        outputs = [*output_types(model), *extra_types(model)]
        versions = self._inference.versions(model.name)
        return json_answer(metadata(model, versions, inputs, outputs, PLATFORM))

    async def model_config(self, _request: Request, groups: Mapping[str, str]) -> Response:
        """The model's configuration, as Triton's clients read it."""
        model = self._inference.model(groups["model"], groups["version"])
        return json_answer(config_json(model_config(model, self._inference.max_rows)))

    async def infer(self, request: Request, groups: Mapping[str, str]) -> Response:
        """Scores of a call of the Open Inference Protocol."""
        end = request.headers.get("inference-header-content-length")
        asked = await _parsed(
            request.body, lambda body: parse_call(body, end, groups["model"], groups["version"])
        )
        model, tensors = await self._inference.infer(asked.call, _time_left_s(request))
        body, json_bytes = answer_body(asked, model, tensors)
        if json_bytes is None:
            return Response(HTTPStatus.OK, JSON, body)
        headers = {"Inference-Header-Content-Length": str(json_bytes)}
        return Response(HTTPStatus.OK, "application/octet-stream", body, headers)

    async def classify(self, request: Request, groups: Mapping[str, str]) -> Response:
        """Labels and scores of texts or images."""
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
        return json_answer(
            {"model": model.name, "version": model.version, "classifications": answers}
        )


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
