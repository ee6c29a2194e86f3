"""Telling a full memory from other failures of torch."""

from __future__ import annotations

from typing import Final

import torch

OUT_OF_MEMORY: Final = (
    "out of memory with a batch of one row; lower --max-length, --freeze more blocks, or choose a "
    "smaller --model"
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` says that a GPU or CPU allocation failed."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
