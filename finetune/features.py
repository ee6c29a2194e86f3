"""What an encoder makes of rows, as one vector a row: the input of probes and audits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from edgewright.errors import ConfigError
from edgewright.finetune.batches import Indices, Rows, evaluation_batches, to_device
from edgewright.finetune.memory import OUT_OF_MEMORY, is_out_of_memory

_BATCH_ROWS: Final = 32


@dataclass(frozen=True, eq=False)
class RowSubset:
    """Some of the rows, as rows."""

    rows: Rows
    chosen: Indices  # places in ``rows``

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, shape (chosen,)."""
        return self.rows.labels[self.chosen]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, shape (chosen,)."""
        return self.rows.lengths[self.chosen]

    def inputs(self, indices: Indices) -> dict[str, torch.Tensor]:
        """As the rows they are taken from give them."""
        return self.rows.inputs(self.chosen[indices])


def pooled_features(
    model: Any, rows: Rows, device: torch.device, batch_rows: int = _BATCH_ROWS
) -> NDArray[np.float32]:
    """The mean over a row's tokens of the encoder's last hidden state, in eval mode and fp32.

    Args:
        model: a transformers model, on ``device``; its head is not run.
        rows: what to encode.
        device: where the model is.
        batch_rows: rows of one pass; halved where they do not fit in memory.

    Returns:
        (rows, hidden size); (0, 0) without rows.

    Raises:
        ConfigError: not even one row fits in memory.
    """
    model.eval()
    batches = evaluation_batches(rows.lengths, batch_rows)
    if not batches:
        return np.empty((0, 0), np.float32)
    try:
        with torch.no_grad():
            pooled = [_pool(model.base_model, rows.inputs(each), device) for each in batches]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if batch_rows == 1:
            raise ConfigError(OUT_OF_MEMORY) from error
    else:
        return np.concatenate(pooled)[np.argsort(np.concatenate(batches))]
    return pooled_features(model, rows, device, batch_rows // 2)


def _pool(
    encoder: Any, inputs: dict[str, torch.Tensor], device: torch.device
) -> NDArray[np.float32]:
    inputs = to_device(inputs, device)
    states = encoder(**inputs).last_hidden_state.float()
    mask = inputs.get("attention_mask", torch.ones(states.shape[:2], device=device))
    weights = mask.unsqueeze(-1).float()
    mean: NDArray[np.float32] = (
        ((states * weights).sum(1) / weights.sum(1).clamp_min(1)).cpu().numpy()
    )
    return mean
