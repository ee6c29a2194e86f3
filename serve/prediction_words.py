"""Answers in the words of edgewright.v1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgewright.model_file import FEATURES
from edgewright.serve.call import Answer
from edgewright.serve.models import ServedModel
from edgewright.serve.predictor import Predicted
from edgewright.v1.prediction_pb2 import Classification, Embedding


def write(
    classification: Classification, model: ServedModel, predicted: Predicted, top_k: int
) -> None:
    """Write one answer into an empty message; ``top_k`` 0 gives every class.

    Messages are written where they belong: a constructor copies those that it is given.
    """
    labels, most = model.labels, top_k or None
    prediction_id, answer = predicted
    classification.prediction_id = prediction_id
    classification.label = labels[answer.classes[0]]
    classification.score = answer.scores[0]
    classification.truncated = answer.truncated
    add = classification.scores.add
    for index, score in zip(answer.classes[:most], answer.scores[:most], strict=True):
        add(label=labels[index], score=score)


def embeddings(answers: Sequence[Answer], *, normalize: bool) -> list[Embedding]:
    """The features in words, each scaled to the length 1 where ``normalize``; zeros stay zeros."""
    vectors = np.stack([answer.extras[FEATURES] for answer in answers])
    if normalize:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, lengths, where=lengths > 0, out=np.zeros_like(vectors))
    return [
        Embedding(values=values, truncated=answer.truncated)
        for values, answer in zip(vectors.tolist(), answers, strict=True)
    ]
