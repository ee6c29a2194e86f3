"""Telling a full memory from other failures of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgewright.errors import ConfigError

Answer = TypeVar("Answer")


def out_of_memory(rows: int) -> str:
    """What to say where so few rows are as few as a pass may have."""
    return (
        f"out of memory with a batch of {'one row' if rows == 1 else f'{rows} rows'}; lower "
        "--max-length, --freeze more blocks, or choose a smaller --model"
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether ``error`` says that a GPU or CPU allocation failed."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def in_pieces(work: Callable[[NDArray[np.int64]], Answer], rows: NDArray[np.int64]) -> list[Answer]:
    """``work`` on rows together, or where memory is short on halves of them, one after another.

    Returns:
        What ``work`` gave, in the order of the rows.

    Raises:
        ConfigError: not even one row fits in memory.
    """
    try:
        return [work(rows)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(rows) == 1:
            raise ConfigError(out_of_memory(1)) from error
    half = len(rows) // 2
    return in_pieces(work, rows[:half]) + in_pieces(work, rows[half:])
