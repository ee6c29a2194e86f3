"""The layer that gives the logits: found, and started from a linear probe.

Head first, then the rest (LP-FT, Kumar et al. 2022): a head drawn at random sends the blocks below
it gradients that mean nothing until it is learnt, and those distort features that were good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewright.finetune.batches import Indices, Rows, evaluation_batches, to_device
from edgewright.finetune.freeze import tensors_of
from edgewright.finetune.memory import in_pieces
from edgewright.finetune.probe import fit_probe

Features = NDArray[np.float32]  # (rows, dims)

_BATCH_ROWS = 32


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass over rows saw.

    Attributes:
        head_inputs: what the layer that gives the logits was handed, (rows, dims); None where
            that is no linear layer over one vector a row.
        pooled: the last block's answer, its mean over a row's tokens, (rows, hidden); None where
            the model's blocks are not known.
    """

    head_inputs: Features | None
    pooled: Features | None


def find_head(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> nn.Linear | None:
    """The linear layer whose answer is the model's logits, one a class; None where none is."""
    linears: dict[nn.Linear, torch.Tensor] = {}

    def keep(module: nn.Linear, _args: Any, answer: torch.Tensor) -> None:
        linears[module] = answer

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    model.eval()
    try:
        with torch.no_grad():
            logits = model(**inputs).logits
    finally:
        for hook in hooks:
            hook.remove()
    return next((each for each, answer in linears.items() if answer is logits), None)


def survey(
    model: nn.Module,
    rows: Rows,
    device: torch.device,
    *,
    head: nn.Linear | None,
    last_block: nn.Module | None,
    precision: Callable[[], AbstractContextManager[Any]],
) -> Survey:
    """Run ``model`` over ``rows`` once, in eval mode, and keep what probes and audits read.

    Args:
        model: takes the inputs of ``rows``, on ``device``.
        rows: at least one.
        device: where the model is.
        head: from ``find_head``.
        last_block: the last of ``find_blocks``.
        precision: gives the autocast context of a pass.
    """

    def look(batch: Indices) -> tuple[Features | None, Features | None]:
        inputs = to_device(rows.inputs(batch), device)
        with precision():
            read, answered = _seen(model, inputs, head, last_block)
        mask = inputs.get("attention_mask")
        return (
            None if read is None else read.float().cpu().numpy(),
            None if answered is None else _pool(answered, mask),
        )

    model.eval()
    batches = evaluation_batches(rows.lengths, _BATCH_ROWS)
    seen = [piece for batch in batches for piece in in_pieces(look, batch)]
    order = np.argsort(np.concatenate(batches))
    return Survey(
        _in_order([read for read, _ in seen], order), _in_order([mean for _, mean in seen], order)
    )


def start_head(head: nn.Linear, features: Features, labels: NDArray[np.int64], seed: int) -> None:
    """Give ``head`` the weights of a linear probe on ``features``, what it is handed."""
    weight, bias = fit_probe(features, labels, head.out_features, seed=seed)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(bias))


def _seen(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    head: nn.Module | None,
    last_block: nn.Module | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What ``head`` was handed and ``last_block`` answered in one pass."""
    read: list[torch.Tensor] = []
    answered: list[torch.Tensor] = []
    with torch.no_grad(), ExitStack() as hooks:
        if head is not None:
            hook = head.register_forward_pre_hook(lambda _layer, args: read.extend(args[:1]))
            hooks.callback(hook.remove)
        if last_block is not None:
            hook = last_block.register_forward_hook(
                lambda _block, _args, answer: answered.extend(list(tensors_of(answer))[:1])
            )
            hooks.callback(hook.remove)
        model(**inputs)
    return (read[0] if read else None), (answered[0] if answered else None)


def _pool(states: torch.Tensor, mask: torch.Tensor | None) -> Features:
    """The mean over tokens (rows, tokens, hidden) or places (rows, channels, height, width)."""
    states = states.float()
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    if states.ndim == 2:
        states = states.unsqueeze(1)
    weights = torch.ones(states.shape[:2], device=states.device)
    if mask is not None and mask.shape == weights.shape:
        weights = mask.float()
    total = (states * weights.unsqueeze(-1)).sum(1)
    mean: Features = (total / weights.sum(1, keepdim=True).clamp_min(1)).cpu().numpy()
    return mean


def _in_order(parts: Sequence[Features | None], order: NDArray[np.int64]) -> Features | None:
    arrays = [part for part in parts if part is not None and part.ndim == 2]
    if len(arrays) < len(parts):
        return None
    values: Features = np.concatenate(arrays)[order]
    return values
