"""Rows of token ids that can be learnt, for a loop without a tokenizer."""

import hashlib
from functools import cached_property

import numpy as np
import torch


class MadeUpRows:
    """Token ids of mixed lengths, from a range of the label's own; 0 is the padding."""

    def __init__(self, count: int = 40, classes: int = 3, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.lengths = rng.integers(3, 20, count)
        self.labels = rng.choice(classes, count, p=[0.6, 0.3, 0.1])
        self.ids = [
            rng.integers(5 + 10 * label, 15 + 10 * label, length)
            for label, length in zip(self.labels, self.lengths, strict=True)
        ]

    @cached_property
    def keys(self) -> list[str]:
        return [hashlib.sha256(ids.tobytes()).hexdigest() for ids in self.ids]

    def inputs(self, indices):
        width = max(self.lengths[i] for i in indices)
        ids = np.zeros((len(indices), width), np.int64)
        for place, index in enumerate(indices):
            ids[place, : self.lengths[index]] = self.ids[index]
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(ids > 0).long(),
        }
