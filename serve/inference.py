"""A call of the Open Inference Protocol, whether it came by gRPC or as JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from edgewright.errors import InputError, ModelNotFoundError, NotReadyError
from edgewright.model_file import FEATURES, LOGITS
from edgewright.preprocess import Row
from edgewright.serve.model_tensors import (
    array_types,
    example_type,
    extra_types,
    output_types,
    rows_of,
)
from edgewright.serve.models import ServedModel
from edgewright.serve.predictor import Predicted, Predictor
from edgewright.serve.registry import Registry
from edgewright.serve.tensors import (
    BYTES,
    FP32,
    AnswerTensor,
    GivenTensor,
    TensorType,
    array,
    fault,
    strings,
)

EXTENSIONS: Final = ("classification", "model_configuration")
PLATFORM: Final = "edgewright"
CLASSIFICATION: Final = "classification"
_EXTRAS: Final = (LOGITS, FEATURES)
# Triton's clients in C++ send it with every call. It speaks of streams alone, and there are none.
_WITHOUT_EFFECT: Final = "triton_enable_empty_final_response"
_IN_PLACE: Final = 64 << 10  # bytes or elements that are decoded on the event loop itself
_VERSION: Final = re.compile("[1-9][0-9]{0,17}")

T = TypeVar("T")


class RequestedTensor(NamedTuple):
    """An output that is asked for; ``classes`` above 0 wants that many best, in Triton's words."""

    name: str
    classes: int = 0


class InferCall(NamedTuple):
    """What is asked; ``parameters`` may hold "timeout", in microseconds."""

    model: str
    version: str
    inputs: Sequence[GivenTensor]
    outputs: Sequence[RequestedTensor] = ()
    parameters: Mapping[str, Any] = MappingProxyType({})


class Inference:
    """Answers calls through the predictor, as edgewright.v1 does."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @property
    def registry(self) -> Registry:
        """The models."""
        return self._predictor.registry

    @property
    def max_rows(self) -> int:
        """Rows that one call may have."""
        return self._predictor.limits.max_texts

    def model(self, name: str, version: str) -> ServedModel:
        """The model asked for; raises as ``Registry.ready``, InputError for a bad version."""
        return self.registry.ready(name, version_number(version))

    def versions(self, name: str) -> list[str]:
        """Versions of a model that may be asked for, as the protocol writes them, ascending."""
        lineup = self.registry.lineup(name)
        return [str(version) for version in sorted(lineup.versions if lineup else ())]

    def is_model_ready(self, name: str, version: str) -> bool:
        """Whether it answers; of a model that nobody knows, it is said that it does not."""
        try:
            self.model(name, version)
        except (ModelNotFoundError, NotReadyError):
            return False
        return True

    async def infer(
        self, call: InferCall, time_left_s: float | None
    ) -> tuple[ServedModel, list[AnswerTensor]]:
        """The model that answered, and the outputs in the order asked.

        Raises:
            InputError: names the tensor or parameter at fault, and what was expected of it.
            EdgewrightError: as ``Predictor`` and ``Registry.ready``.
        """
        model = self.registry.route(call.model, version_number(call.version))
        _check_outputs(model, call.outputs)
        time_left_s = _sooner(time_left_s, call.parameters)
        extras = [each.name for each in call.outputs if each.name in _EXTRAS]
        predicted = await self._predict(model, _by_name(call.inputs), time_left_s, extras)
        usual = _usual_answers(model, predicted)
        if not call.outputs:
            return model, usual
        answers = {each.name: each for each in (*usual, *(_extra(x, predicted) for x in extras))}
        return model, [
            _classified(model, answers[name], classes) if classes else answers[name]
            for name, classes in call.outputs
        ]

    def _check_rows(self, given: GivenTensor) -> None:
        """Before anything is decoded."""
        if given.shape and given.shape[0] > self.max_rows:
            raise fault(
                given.name,
                f"has {given.shape[0]} rows and at most {self.max_rows} are taken; split the call, "
                "or raise --max-texts of the server",
            )

    async def _predict(
        self,
        model: ServedModel,
        inputs: Mapping[str, GivenTensor],
        time_left_s: float | None,
        extras: Sequence[str],
    ) -> list[Predicted]:
        for each in inputs.values():
            self._check_rows(each)
        example = example_type(model)
        if inputs.keys() != {example.name}:
            wanted = _arrays(model, inputs)
            size = sum(len(each.content) for each in inputs.values())
            rows = await _off_the_loop(size, lambda: _rows(model, wanted, inputs))
            return await self._predictor.rows(model, rows, time_left_s, extras)
        contents = strings(inputs[example.name], example)
        try:
            if example.name == "text":
                texts = [_utf8(index, each) for index, each in enumerate(contents)]
                return await self._predictor.texts(model, texts, time_left_s, extras=extras)
            return await self._predictor.images(model, contents, time_left_s, extras=extras)
        except InputError as error:
            raise InputError(f"tensor {example.name!r}: {error}", field=example.name) from error


def classes_asked(name: str, parameters: Mapping[str, Any]) -> int:
    """The number that the parameter "classification" of an output asks for, or 0."""
    refuse_parameters(name, parameters, (CLASSIFICATION,))
    count = parameters.get(CLASSIFICATION, 0)
    if type(count) is not int or (CLASSIFICATION in parameters and count < 1):
        raise fault(name, f"has classification {count!r:.100}; a number of classes is expected")
    return count


def refuse_parameters(name: str, parameters: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise InputError for a parameter of tensor ``name`` that would be ignored."""
    for parameter in parameters:
        if parameter not in known:
            there = f"there is: {', '.join(known)}" if known else "leave it out"
            raise fault(name, f"has the parameter {parameter[:200]!r}, not supported; {there}")


def _arrays(model: ServedModel, inputs: Mapping[str, GivenTensor]) -> list[TensorType]:
    """What the model reads, where that is what the call has."""
    every = array_types(model)
    wanted = [each for each in every if each.name in inputs or each.name != "token_type_ids"]
    if {each.name for each in wanted} != inputs.keys():
        raise InputError(
            f"{model.name} takes the input {example_type(model).name!r}, or in its place "
            f"{', '.join(each.name for each in every)}; the call has "
            f"{', '.join(name[:200] for name in inputs) or 'none'}",
            field="inputs",
        )
    return wanted


def _rows(
    model: ServedModel, wanted: Sequence[TensorType], inputs: Mapping[str, GivenTensor]
) -> Sequence[Row]:
    return rows_of(model, {each.name: array(inputs[each.name], each) for each in wanted})


async def _off_the_loop(size: int, work: Callable[[], T]) -> T:
    """What ``work`` gives, computed in a thread where it is large."""
    return await asyncio.to_thread(work) if size > _IN_PLACE else work()


def version_number(version: str) -> int:
    """The number of a version as the protocol writes it; empty is 0, the current one."""
    if version and not _VERSION.fullmatch(version):
        raise InputError(
            f"version {version[:100]!r} is none; give a number from 1, or nothing for the current",
            field="model_version",
        )
    return int(version or 0)


def _by_name(inputs: Sequence[GivenTensor]) -> dict[str, GivenTensor]:
    by_name = {each.name: each for each in inputs}
    if len(by_name) < len(inputs):
        raise InputError("an input is given twice; give each once", field="inputs")
    return by_name


def _check_outputs(model: ServedModel, outputs: Sequence[RequestedTensor]) -> None:
    if not outputs:
        return
    names = [each.name for each in (*output_types(model), *extra_types(model))]
    asked = [each.name for each in outputs]
    for each in outputs:
        if each.name not in names:
            raise fault(each.name, f"is no output of {model.name}; there are: {', '.join(names)}")
        if each.classes and each.name != "scores":
            raise fault(each.name, "cannot be asked for with classification; 'scores' can")
        if not 0 <= each.classes <= len(model.labels):
            raise fault(
                each.name,
                f"has classification {each.classes}; 1 to {len(model.labels)} is expected",
            )
    if len(set(asked)) < len(asked):
        raise InputError("an output is asked for twice; ask for each once", field="outputs")


def _sooner(time_left_s: float | None, parameters: Mapping[str, Any]) -> float | None:
    """The time left, also by the parameter "timeout"; 0 sets none."""
    if not parameters:
        return time_left_s
    unknown = [name for name in parameters if name not in ("timeout", _WITHOUT_EFFECT)]
    if unknown:
        raise InputError(
            f"parameter {unknown[0][:200]!r} is not supported; there is: timeout, in microseconds",
            field="parameters",
        )
    timeout_us = parameters.get("timeout", 0)
    if type(timeout_us) is not int or not 0 <= timeout_us < 2**63:
        raise InputError(
            f"parameter 'timeout' is {timeout_us!r:.100}; a number of microseconds is expected",
            field="parameters",
        )
    if not timeout_us:
        return time_left_s
    return min(timeout_us / 1e6, float("inf") if time_left_s is None else time_left_s)


def _utf8(index: int, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"element {index} is no UTF-8: {error.reason} at {error.start}") from error


def _usual_answers(model: ServedModel, predicted: Sequence[Predicted]) -> list[AnswerTensor]:
    """As ``output_types``."""
    names = model.labels
    rows, classes = len(predicted), len(names)
    scores: list[float] = []
    for _, answer in predicted:
        row = [0.0] * classes
        for index, score in zip(answer.classes, answer.scores, strict=True):
            row[index] = score
        scores += row
    labels = [names[answer.classes[0]].encode() for _, answer in predicted]
    best = [answer.scores[0] for _, answer in predicted]
    ids = [prediction_id.encode() for prediction_id, _ in predicted]
    return [
        AnswerTensor("label", BYTES, (rows,), labels),
        AnswerTensor("score", FP32, (rows,), best),
        AnswerTensor("scores", FP32, (rows, classes), scores),
        AnswerTensor("prediction_id", BYTES, (rows,), ids),
    ]


def _extra(name: str, predicted: Sequence[Predicted]) -> AnswerTensor:
    values = np.stack([answer.extras[name] for _, answer in predicted])
    return AnswerTensor(name, FP32, values.shape, values.ravel().tolist())


def _classified(model: ServedModel, scores: AnswerTensor, classes: int) -> AnswerTensor:
    """Triton's extension: "score:index:label" of each row's best classes, BYTES (rows, classes)."""
    table = np.asarray(scores.values, np.float32).reshape(scores.shape)
    best = np.argsort(-table, axis=1, kind="stable")[:, :classes]
    words = [
        f"{table[row, index]:f}:{index}:{model.labels[index]}".encode()
        for row, indices in enumerate(best)
        for index in indices
    ]
    return AnswerTensor(scores.name, BYTES, (len(table), classes), words)
