"""What a server answers, as frozen dataclasses: the client's results, without protobuf in sight."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from edgewright.v1 import model_pb2, prediction_pb2


@dataclass(frozen=True)
class ClassScore:
    """A class and its softmax score, from 0 to 1."""

    label: str
    score: float


@dataclass(frozen=True)
class Classification:
    """The answer to one text: the best class, and the ``top_k`` classes, best first."""

    prediction_id: str  # names this prediction in feedback
    label: str
    score: float
    scores: tuple[ClassScore, ...]
    truncated: bool  # the text was longer than the model reads, and was cut


@dataclass(frozen=True)
class Embedding:
    """The vector that the model's head reads of one text or image."""

    values: tuple[float, ...]
    truncated: bool  # the text was longer than the model reads, and was cut


class ModelState(StrEnum):
    """Whether a model answers."""

    UNSPECIFIED = "UNSPECIFIED"
    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"  # it is not loaded, for what ``problem`` says


@dataclass(frozen=True)
class ServedCertificate:
    """What the certify split proved of the served variant, as shares of rows."""

    verdict: str  # "PASS", "UNVERIFIED", ...; "UNSPECIFIED" where this client is older than it
    loss_upper_bound: float
    budget: float
    error_rate: float  # one-sided probability that a PASS is wrong
    rows: int


@dataclass(frozen=True)
class ServedModel:
    """A model as its server describes it."""

    name: str
    version: int
    task: str
    state: ModelState
    labels: tuple[str, ...]
    variant: str
    runtime: str
    certificate: ServedCertificate | None
    manifest_sha256: str
    max_length_tokens: int
    chosen_variant: str  # by optimize; another one may answer, see ``choice_source``
    choice_source: str  # "BUNDLE": optimize's choice; "HOST": measured by the server's host
    role: str = "UNSPECIFIED"  # "CURRENT", "CANARY", "SHADOW", "HELD": for calls that name it
    problem: str = ""  # why it is not served as the repository says


def classification(message: prediction_pb2.Classification) -> Classification:
    """The answer to one text, from its message."""
    return Classification(
        prediction_id=message.prediction_id,
        label=message.label,
        score=message.score,
        scores=tuple(ClassScore(each.label, each.score) for each in message.scores),
        truncated=message.truncated,
    )


def embedding(message: prediction_pb2.Embedding) -> Embedding:
    """The vector of one text or image, from its message."""
    return Embedding(tuple(message.values), message.truncated)


def served_model(message: model_pb2.Model) -> ServedModel:
    """A model, from its message."""
    proof = message.certificate
    certificate = ServedCertificate(
        verdict=_enum_name(model_pb2.Verdict, proof.verdict, "VERDICT_"),
        loss_upper_bound=proof.loss_upper_bound,
        budget=proof.budget,
        error_rate=proof.error_rate,
        rows=proof.rows,
    )
    return ServedModel(
        name=message.name,
        version=message.version,
        task=message.task,
        state=ModelState(_enum_name(model_pb2.ModelState, message.state, "MODEL_STATE_")),
        labels=tuple(message.labels),
        variant=message.variant,
        runtime=message.runtime,
        certificate=certificate if message.HasField("certificate") else None,
        manifest_sha256=message.manifest_sha256,
        max_length_tokens=message.max_length_tokens,
        chosen_variant=message.chosen_variant,
        choice_source=_enum_name(model_pb2.ChoiceSource, message.choice_source, "CHOICE_SOURCE_"),
        role=_enum_name(model_pb2.VersionRole, message.role, "VERSION_ROLE_"),
        problem=message.problem,
    )


def _enum_name(enum: Any, value: int, prefix: str) -> str:
    """A value that a newer server made up reads as UNSPECIFIED."""
    known = enum.DESCRIPTOR.values_by_number.get(value, enum.DESCRIPTOR.values_by_number[0])
    return str(known.name).removeprefix(prefix)
