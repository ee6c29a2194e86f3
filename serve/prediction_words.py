"""Answers in the words of edgewright.v1."""

from __future__ import annotations

from collections.abc import Sequence

from edgewright.serve.models import ServedModel
from edgewright.serve.predictor import Predicted
from edgewright.v1.prediction_pb2 import Classification, ClassScore


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
