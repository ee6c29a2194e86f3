"""Temperature: one number that makes a model's scores say how often it is right.

Guo et al. 2017, "On Calibration of Modern Neural Networks": the logits are divided by the
temperature T that minimises the cross-entropy of validation. No row changes its class. T is written
into the weights of the layer that gives the logits, so that whatever loads the model is calibrated
without knowing of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewright import metrics
from edgewright.finetune.evaluate import Answers, Logits, cross_entropy, log_probabilities

BINS: Final = 15  # of the calibration error and of the diagram
LEAST_ROWS: Final = 20  # of validation; the temperature of fewer is mostly chance
_COLDEST: Final = 0.05
_HOTTEST: Final = 20.0
_AT_A_BOUND: Final = 1.01  # a minimum within this factor of a bound lies beyond it
_CLOSE: Final = 1e-5  # of the largest logit; fp32 weights divided by T round at 6e-8


@dataclass(frozen=True)
class Calibration:
    """The temperature in the written weights; 1 with a reason where none was fitted or folded."""

    temperature: float
    rows: int  # of validation
    skipped: str = ""  # why the temperature is 1; empty where it was fitted


@dataclass(frozen=True)
class Bin:
    """The rows whose top score lies in one of ``BINS`` equal ranges."""

    rows: int
    confidence: float  # mean top score
    accuracy: float


def calibrate(model: nn.Module, validation: Answers, batch: Mapping[str, Any]) -> Calibration:
    """Fit the temperature on ``validation`` and fold it into ``model``, in place.

    Args:
        model: takes ``batch`` by name and answers with ``.logits``.
        validation: what ``model`` answers on the validation split.
        batch: inputs of a few rows, where the model is, to find its last layer and to check it.
    """
    found = fit_temperature(validation.labels, validation.logits)
    if found.skipped:
        return found
    refused = fold_temperature(model, found.temperature, batch)
    return Calibration(1.0, found.rows, refused) if refused else found


def fit_temperature(labels: NDArray[np.int64], logits: Logits) -> Calibration:
    """The T that minimises the mean cross-entropy of ``logits / T``.

    In 1/T the loss is convex, so that over log T it has one minimum, found by bounded search
    between .05 and 20. Where every row is right there is none: the loss falls as T goes to 0.

    Args:
        labels: (rows,) class indices.
        logits: (rows, classes).
    """
    from scipy.optimize import minimize_scalar

    rows = len(labels)
    if rows < LEAST_ROWS:
        return Calibration(1.0, rows, f"{rows} validation rows; {LEAST_ROWS} are needed")
    wrong = int((logits.argmax(axis=1) != labels).sum())
    if wrong in (0, rows):
        which = "every" if wrong == 0 else "no"
        return Calibration(
            1.0, rows, f"{which} validation row is right, so that no temperature is best"
        )
    wide = logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return float(cross_entropy(labels, wide / math.exp(log_temperature)).mean())

    bounds = (math.log(_COLDEST), math.log(_HOTTEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    temperature = math.exp(float(found.x))
    if not _COLDEST * _AT_A_BOUND < temperature < _HOTTEST / _AT_A_BOUND:
        return Calibration(
            1.0, rows, f"the best temperature is not between {_COLDEST:g} and {_HOTTEST:g}"
        )
    return Calibration(temperature, rows)


def fold_temperature(model: nn.Module, temperature: float, batch: Mapping[str, Any]) -> str:
    """Divide the layer that gives the logits by ``temperature``, in place.

    Returns:
        "" when the logits of ``batch`` came out divided; else why not, the model being as it was.
    """
    model.eval()
    layer, before = output_layer(model, batch)
    if layer is None:
        return "no linear layer of the model gives one output a class"
    tensors = [each for each in (layer.weight, layer.bias) if each is not None]
    kept = [each.detach().clone() for each in tensors]
    with torch.no_grad():
        for each in tensors:
            each.div_(temperature)
        after = model(**batch).logits.float()
        largest = float(before.abs().max())
        if torch.allclose(after, before / temperature, rtol=_CLOSE, atol=_CLOSE * largest):
            return ""
        for each, old in zip(tensors, kept, strict=True):
            each.copy_(old)
    return "the model's logits are not those of its last linear layer"


def scores(logits: Logits) -> NDArray[np.float64]:
    """Softmax over the classes, shape (rows, classes)."""
    return np.exp(log_probabilities(logits))


def calibration_figures(calibration: Calibration, test: Answers) -> dict[str, Any]:
    """``temperature`` and the test split's calibration error without and with it.

    Args:
        calibration: of the model.
        test: its answers with the temperature in its weights; no rows give None.
    """
    before = after = None
    if len(test.labels):
        plain = test.logits * calibration.temperature
        before = metrics.expected_calibration_error(test.labels, scores(plain), BINS)
        after = metrics.expected_calibration_error(test.labels, scores(test.logits), BINS)
    return {"temperature": calibration.temperature, "ece_before": before, "ece_after": after}


def calibration_record(calibration: Calibration, test: Answers) -> dict[str, Any]:
    """The figures with what they rest on, for metrics.json."""
    figures = calibration_figures(calibration, test)
    return figures | {"rows": calibration.rows, "skipped": calibration.skipped, "bins": BINS}


def reliability(labels: NDArray[np.int64], logits: Logits) -> list[Bin]:
    """Confidence and accuracy of each bin that has rows, from low scores to high."""
    top = scores(logits).max(axis=1)
    right = logits.argmax(axis=1) == labels
    bin_of = np.minimum((top * BINS).astype(np.int64), BINS - 1)
    members = [np.flatnonzero(bin_of == index) for index in range(BINS)]
    return [
        Bin(len(rows), float(top[rows].mean()), float(right[rows].mean()))
        for rows in members
        if len(rows)
    ]


def output_layer(
    model: nn.Module, batch: Mapping[str, Any]
) -> tuple[nn.Linear | None, torch.Tensor]:
    """The last linear layer to run that has one output a class, if any, and the batch's logits."""
    called: list[nn.Linear] = []
    hooks = [
        module.register_forward_hook(lambda each, _inputs, _answer: called.append(each))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            logits = model(**batch).logits.float()
    finally:
        for hook in hooks:
            hook.remove()
    fitting = [layer for layer in called if layer.out_features == logits.shape[-1]]
    return (fitting[-1] if fitting else None), logits
