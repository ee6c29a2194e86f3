"""One pass before training: what the head reads, and what the encoder makes of each row.

The linear probe that starts the head and the audit of the data read these, so the pass is made
once for both; where the frozen part is cached, it is the rest of the model alone that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edgewright.finetune.batches import Indices, Rows, evaluation_batches, to_device
from edgewright.finetune.freeze import tensors_of
from edgewright.finetune.linear_probe import Features
from edgewright.finetune.memory import in_pieces
from edgewright.finetune.processes import ALONE, Processes

_BATCH_ROWS: Final = 32


@dataclass(frozen=True, eq=False)
class Survey:
    """What a pass over some rows saw, in their order.

    Attributes:
        head_inputs: what the layer that gives the logits was handed, (rows, dims); None without
            such a layer, or where it is handed more than a vector a row.
        pooled: the encoder's last hidden state, its mean over a row's tokens or an image's
            places, (rows, hidden); None where the model has no encoder of its own.
    """

    head_inputs: Features | None
    pooled: Features | None


def survey(
    model: nn.Module,
    rows: Rows,
    device: torch.device,
    *,
    head: nn.Module | None,
    encoder: nn.Module | None,
    precision: Callable[[], AbstractContextManager[Any]],
    processes: Processes = ALONE,
) -> Survey:
    """Run ``model`` over ``rows`` once, in eval mode.

    Args:
        model: takes the inputs of ``rows``, on ``device``.
        rows: at least one.
        device: where the model is.
        head: from ``find_head``.
        encoder: the module of the model whose answer is pooled.
        precision: gives the autocast context of a pass.
        processes: that share the batches; each of them gets all that was seen.
    """

    def look(batch: Indices) -> tuple[Features | None, Features | None]:
        inputs = to_device(rows.inputs(batch), device)
        with precision():
            read, answered = _seen(model, inputs, head, encoder)
        return (
            None if read is None else read.float().cpu().numpy(),
            None
            if answered is None
            else pool(answered, inputs.get("attention_mask")).cpu().numpy(),
        )

    model.eval()
    batches = evaluation_batches(rows.lengths, _BATCH_ROWS)
    own = [in_pieces(look, batch) for batch in batches[processes.mine]]
    seen = [piece for pieces in processes.collect(own) for piece in pieces]
    order = np.argsort(np.concatenate(batches))
    return Survey(
        _in_order([read for read, _ in seen], order), _in_order([mean for _, mean in seen], order)
    )


def _seen(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    head: nn.Module | None,
    encoder: nn.Module | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What ``head`` was handed and ``encoder`` answered in one pass."""
    read: list[torch.Tensor] = []
    answered: list[torch.Tensor] = []
    with torch.no_grad(), ExitStack() as hooks:
        if head is not None:
            hook = head.register_forward_pre_hook(lambda _layer, args: read.extend(args[:1]))
            hooks.callback(hook.remove)
        if encoder is not None:
            hook = encoder.register_forward_hook(
                lambda _encoder, _args, answer: answered.append(_hidden(answer))
            )
            hooks.callback(hook.remove)
        model(**inputs)
    return (read[0] if read else None), (answered[0] if answered else None)


def _hidden(answer: Any) -> torch.Tensor:
    """The last hidden state among what an encoder answers."""
    state = getattr(answer, "last_hidden_state", None)
    return next(iter(tensors_of(answer))) if state is None else state


def pool(states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mean of a row's states over its tokens or places, fp32 of shape (rows, hidden).

    Args:
        states: (rows, tokens, hidden), of an image (rows, hidden, height, width), or one a row.
        mask: (rows, tokens), 0 where there is padding; not looked at where it is of another shape.
    """
    states = states.float()
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)
    if states.ndim == 2:
        states = states.unsqueeze(1)
    weights = torch.ones(states.shape[:2], device=states.device)
    if mask is not None and mask.shape == weights.shape:
        weights = mask.float()
    total = (states * weights.unsqueeze(-1)).sum(1)
    return total / weights.sum(1, keepdim=True).clamp_min(1)


def _in_order(parts: Sequence[Features | None], order: NDArray[np.int64]) -> Features | None:
    arrays = [part for part in parts if part is not None and part.ndim == 2]
    if len(arrays) < len(parts):
        return None
    values: Features = np.concatenate(arrays)[order]
    return values
