"""Old weights, new weights, and those between them.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT): the weights on the line
from the model before to the model after fine-tuning often keep most of what both can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

SHARES: Final = tuple(round(tenth / 10, 1) for tenth in range(11))  # 0 is old, 1 is new


@dataclass(frozen=True, eq=False)
class Movement:
    """What training moved: the tensors of the model that differ, by name, on the CPU.

    ``fresh`` names those that were drawn for this run: they have no old self, and stay new in every
    mixture.
    """

    old: Mapping[str, torch.Tensor]
    new: Mapping[str, torch.Tensor]
    fresh: frozenset[str]

    @classmethod
    def between(cls, before: nn.Module, after: nn.Module, fresh: frozenset[str]) -> Movement:
        """Compare two models of one class; buffers count as weights."""
        news = after.state_dict()
        old: dict[str, torch.Tensor] = {}
        new: dict[str, torch.Tensor] = {}
        for name, tensor in before.state_dict().items():
            later = news[name].detach().cpu()
            if not torch.equal(tensor.cpu(), later):
                old[name], new[name] = tensor.detach().cpu(), later.clone()
        return cls(old, new, fresh & old.keys())

    def mix(self, model: nn.Module, share: float) -> None:
        """Give ``model`` the weights old + share * (new - old), in place; 0 and 1 to the bit.

        Counters and other tensors that are no floats are the new ones unless ``share`` is 0.
        """
        self._write(model, {name: 1.0 if name in self.fresh else share for name in self.old})

    def restore(self, model: nn.Module) -> None:
        """Make ``model`` what it was before training, the head that it was drawn included."""
        self._write(model, dict.fromkeys(self.old, 0.0))

    def _write(self, model: nn.Module, shares: Mapping[str, float]) -> None:
        tensors = model.state_dict()
        with torch.no_grad():
            for name, share in shares.items():
                tensors[name].copy_(_between(self.old[name], self.new[name], share))


def fresh_tensors(model: Any, folder: Path) -> frozenset[str]:
    """Names of the weights that no pre-trained model in ``folder`` can have brought.

    They are the head, and the pooler where the folder has none. A model that does not tell its
    encoder apart has the last of its linear layers for a head.
    """
    encoder = encoder_of(model)
    names = model.state_dict().keys()
    if encoder is None:
        layers = [name for name, each in model.named_modules() if isinstance(each, nn.Linear)]
        return frozenset(name for name in names if layers and name.startswith(f"{layers[-1]}."))
    prefix = f"{model.base_model_prefix}."
    new_pooler = not _has_pooler(folder)
    return frozenset(
        name for name in names if not name.startswith(prefix) or (new_pooler and ".pooler." in name)
    )


def encoder_of(model: Any) -> nn.Module | None:
    """The encoder below the head of a transformers model; None where it is not told apart."""
    encoder = getattr(model, "base_model", None)
    return encoder if isinstance(encoder, nn.Module) and encoder is not model else None


def _between(old: torch.Tensor, new: torch.Tensor, share: float) -> torch.Tensor:
    if share == 0:
        return old
    if share == 1 or not old.is_floating_point():
        return new
    return old + share * (new - old)


def _has_pooler(folder: Path) -> bool:
    from safetensors import safe_open

    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            if any("pooler." in key for key in weights.keys()):  # noqa: SIM118  safe_open is no dict
                return True
    return False
