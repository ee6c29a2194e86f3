"""Telling a full memory from other failures of torch."""

from __future__ import annotations

import torch


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` says that a GPU or CPU allocation failed."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
