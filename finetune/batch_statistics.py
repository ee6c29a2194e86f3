"""What batch normalisations normalise by outside training, measured for the weights as they are.

While it trains, a batch normalisation keeps a moving average of what it sees. The average lags
behind the weights: with the momentum of 0.01 that EfficientNets have, by hundreds of steps, so that
the model that is validated is not the one that trains. Means and variances over training rows, with
the weights held still, have no lag (Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm", 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn

from edgewright.errors import ConfigError
from edgewright.finetune.batches import (
    ChangingRows,
    Indices,
    Rows,
    micro_batches,
    to_device,
    training_steps,
)
from edgewright.finetune.device import autocast
from edgewright.finetune.freeze import frozen_modules
from edgewright.finetune.memory import is_out_of_memory, out_of_memory
from edgewright.finetune.recipe import Recipe

MOST_ROWS: Final = 1_024  # the paper finds little left to gain past 1,000


BatchNorm = nn.modules.batchnorm._BatchNorm  # the common base has no public name


def trained_normalisations(model: nn.Module) -> list[BatchNorm]:
    """The batch normalisations that train: the rows of a step depend on each other."""
    frozen = frozen_modules(model)
    return [each for each in _normalisations(model) if each not in frozen]


def rest_normalisations(model: nn.Module) -> None:
    """Put those that do not train into eval mode, where their statistics stay what they are."""
    trained = set(trained_normalisations(model))
    for each in _normalisations(model):
        if each not in trained:
            each.eval()


def _normalisations(model: nn.Module) -> list[BatchNorm]:
    return [each for each in model.modules() if isinstance(each, BatchNorm)]


def measure_statistics(
    model: nn.Module,
    rows: Rows,
    steps: Sequence[Indices],
    device: torch.device,
    *,
    batch_size: int,
    precision: str,
    of: Sequence[BatchNorm] | None = None,
) -> None:
    """Give those that train the mean and the variance of the first ``MOST_ROWS`` of ``steps``.

    All else is in eval mode meanwhile, so that nothing is dropped out, and stays there.

    Args:
        model: its normalisations' buffers are set in place; nothing is run where none trains.
        rows: the training rows.
        steps: indices of rows, a step each.
        device: where the model is.
        batch_size: rows of one pass, two or more: a channel's variance takes two values. Where
            memory is short, passes are half as large, and half of that.
        precision: as in training.
        of: these in place of those that train.

    Raises:
        ConfigError: not even two rows fit in memory.
    """
    chosen = trained_normalisations(model) if of is None else of
    normalisations = [each for each in chosen if each.track_running_stats]
    if not normalisations:
        return
    try:
        with torch.no_grad(), _measuring(model, normalisations):
            for batch in _batches(steps, batch_size):
                with autocast(device, precision):
                    model(**to_device(rows.inputs(batch), device))
        return
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if batch_size < 4:
            raise ConfigError(out_of_memory(batch_size)) from error
    measure_statistics(
        model, rows, steps, device, batch_size=batch_size // 2, precision=precision, of=of
    )


def measure_first_epoch(
    model: nn.Module,
    rows: Rows,
    recipe: Recipe,
    device: torch.device,
    *,
    of: Sequence[BatchNorm] | None = None,
) -> None:
    """``measure_statistics`` over the steps of a first epoch, as training shows them."""
    steps = training_steps(rows.lengths, recipe.step_rows, seed=recipe.seed, epoch=1, least=2)
    measure_statistics(
        model,
        rows.for_epoch(1) if isinstance(rows, ChangingRows) else rows,
        steps,
        device,
        batch_size=recipe.batch_size,
        precision=recipe.precision,
        of=of,
    )


def _batches(steps: Sequence[Indices], size: int) -> Iterator[Indices]:
    """Passes over whole steps until ``MOST_ROWS`` are read."""
    read = 0
    for step in steps:
        if read >= MOST_ROWS:
            return
        read += len(step)
        yield from micro_batches(step, size, least=2)


@contextmanager
def _measuring(model: nn.Module, normalisations: Sequence[BatchNorm]) -> Iterator[None]:
    """Without a momentum a normalisation keeps the plain average since its reset."""
    model.eval()
    momenta = [each.momentum for each in normalisations]
    for each in normalisations:
        each.reset_running_stats()
        each.momentum = None
        each.train()
    try:
        yield
    finally:
        for each, momentum in zip(normalisations, momenta, strict=True):
            each.momentum = momentum
            each.eval()
