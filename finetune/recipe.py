"""How to train, and what a training tells: of every epoch, and in the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewright.finetune.evaluate import Scores


@dataclass(frozen=True)
class Recipe:
    """How to train, every choice made; checked by ``FinetuneConfig``."""

    epochs: int
    lr: float
    batch_size: int  # rows of one forward and backward pass
    accumulate: int = 1  # passes of one optimiser step
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # 0 does not clip
    class_weights: tuple[float, ...] | None = None  # one a class
    metric: str = "accuracy"
    patience: int = 2
    precision: str = "fp32"
    seed: int = 0

    @property
    def step_rows(self) -> int:
        """Rows of one optimiser step."""
        return self.batch_size * self.accumulate


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave; ``train_loss`` is the mean of its steps, with dropout on."""

    number: int  # from 1
    lr: float  # of its last step
    train_loss: float
    validation: Scores | None

    def value(self, metric: str) -> float:
        """The larger the better; -inf where there is no validation."""
        if self.validation is None:
            return -math.inf
        value = float(getattr(self.validation, metric))
        return -value if metric == "loss" else value


@dataclass(frozen=True)
class Fit:
    """A finished training; the model holds the weights of ``best``."""

    epochs: tuple[Epoch, ...]
    best: Epoch
    batch_size: int  # smaller than asked where memory was short
    stopped_early: bool


@dataclass(frozen=True)
class Watcher:
    """Called as training goes on.

    ``on_step``, after every step: the epoch and the step of it, from 1, and the loss.
    """

    on_step: Callable[[int, int, float], None] = lambda _epoch, _step, _loss: None
    on_epoch: Callable[[Epoch], None] = lambda _epoch: None
    on_warning: Callable[[str], None] = lambda _message: None


def balanced_weights(labels: NDArray[np.int64], classes: int) -> tuple[float, ...]:
    """One weight a class, rows / (classes * rows of the class): each class counts the same."""
    counts = np.maximum(np.bincount(labels, minlength=classes), 1)
    return tuple(float(weight) for weight in len(labels) / (classes * counts))
