"""Answers in the words of edgewright.v1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgewright.model_file import FEATURES
from edgewright.serve.call import Answer
from edgewright.serve.models import ServedModel
from edgewright.serve.predictor import Predicted
from edgewright.v1.prediction_pb2 import Classification, ClassScore, Embedding


def classifications(
    model: ServedModel, predicted: Sequence[Predicted], top_k: int
) -> list[Classification]:
    """The answers in words; ``top_k`` 0 gives every class."""
    labels, most = model.labels, top_k or None
    return [
        Classification(
            prediction_id=prediction_id,
            label=labels[answer.classes[0]],
            score=answer.scores[0],
            scores=[
                ClassScore(label=labels[index], score=score)
                for index, score in zip(answer.classes[:most], answer.scores[:most], strict=True)
            ],
            truncated=answer.truncated,
        )
        for prediction_id, answer in predicted
    ]


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
