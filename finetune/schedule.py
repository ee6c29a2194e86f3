"""The optimiser and its learning rate over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile

import torch
from torch import nn


def adamw(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    factors: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over the parameters that train.

    Matrices decay; biases and norms, which have one dimension, do not.

    Args:
        model: what trains.
        lr: the highest rate.
        weight_decay: of matrices.
        factors: of the rate, by parameter, 1 for one that is not named; each group of the
            optimiser holds its own as "factor".
    """
    # On a CPU in one pass over the numbers, a fifth of the time of the default, which makes ten;
    # on CUDA torch chooses.
    on_cpu = all(each.device.type == "cpu" for each in model.parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            factor = (factors or {}).get(parameter, 1.0)
            groups.setdefault((factor, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "factor": factor}
            for (factor, decay), parameters in groups.items()
        ],
        lr=lr,
        fused=True if on_cpu else None,
    )


def layer_factors(
    model: nn.Module, blocks: Sequence[nn.Module], decay: float
) -> dict[nn.Parameter, float]:
    """Smaller rates for earlier blocks (Howard and Ruder 2018): ``decay`` to the depth's power.

    Args:
        model: the whole model.
        blocks: its blocks, in the order in which they run.
        decay: above 0, at most 1; 1 makes no difference.

    Returns:
        The last block has ``decay``, the one before its square, and so on; what the model holds
        before the blocks, such as embeddings, the smallest of all; what it holds after them 1.
    """
    if not blocks:
        return {}
    factors = {
        parameter: decay**distance
        for distance, block in enumerate(reversed(blocks), 1)
        for parameter in block.parameters()
    }
    before = takewhile(lambda parameter: parameter not in factors, model.parameters())
    return {**dict.fromkeys(before, decay ** (len(blocks) + 1)), **factors}


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """The factor on the learning rate at ``step``: a linear rise, then half a cosine to near 0.

    Args:
        step: from 0 to ``steps`` - 1.
        steps: of the whole run.
        warmup: share of the steps that rise.

    Returns:
        A factor above 0 and at most 1.
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(steps - rising, 1)
    return 0.5 * (1 + math.cos(math.pi * progress))
