"""What a classifier's head reads: one vector for each row, from which the logits are made.

The head is what stands behind the encoder. Where it has several layers (dense, tanh, projection)
the vector is what the first of them reads. A model that does not tell its encoder apart, such as a
factory's, has a head of the one linear layer whose answer is the logits. A head that reads every
token and picks one of its answers, as those of decoders do, reads no such vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


class HeadInput:
    """Keeps what the head of a model was given at the last forward pass."""

    def __init__(self, layer: nn.Linear) -> None:
        self.width = layer.in_features
        self.value: Any = None  # a tensor of shape (rows, width), also one that is being traced
        layer.register_forward_pre_hook(self._keep)

    def _keep(self, _layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.value = arguments[0]

    @classmethod
    def of(cls, model: Any, tensors: Mapping[str, torch.Tensor]) -> HeadInput | None:
        """Of a model in eval mode, found by one pass over ``tensors``, of two rows or more.

        None where no layer of the head reads one vector for each row.
        """
        layer = _first_layer(model, tensors)
        return None if layer is None else cls(layer)


def _first_layer(model: Any, tensors: Mapping[str, torch.Tensor]) -> nn.Linear | None:
    import torch
    from torch import nn

    reads: list[tuple[nn.Linear, torch.Tensor, torch.Tensor]] = []  # in the order of the pass

    def keep(layer: nn.Linear, arguments: tuple[torch.Tensor, ...], answer: torch.Tensor) -> None:
        reads.append((layer, arguments[0], answer))

    linears = [each for each in model.modules() if isinstance(each, nn.Linear)]
    hooks = [each.register_forward_hook(keep) for each in linears]
    try:
        with torch.inference_mode():
            logits = model(**tensors).logits
    finally:
        for hook in hooks:
            hook.remove()
    encoder = getattr(model, "base_model", model)
    known = set(encoder.modules()) if encoder is not model else set()
    for layer, given, answer in reads:
        of_head = layer not in known if known else answer is logits
        if of_head and given.shape[:-1] == logits.shape[:1]:
            return layer
    return None
