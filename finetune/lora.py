"""LoRA: low-rank adapters train in place of the weights of the blocks that are not frozen.

Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models". PEFT puts the adapters into
the model itself, so that whatever calls the model, the cache of the frozen part and the shortened
last block included, needs not know of them. The head trains whole and stays the model's own, which
is why no adapter file could lose it. After training the adapters are merged into the weights that
they stand beside, and the model is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgewright.errors import BackendUnavailableError, ConfigError
from edgewright.finetune.freeze import find_blocks
from edgewright.finetune.interpolation import encoder_of

_ALPHA_OF_RANK = 2  # an adapter's answer is weighed by alpha / rank, so the rate fits every rank


@dataclass(frozen=True, eq=False)
class Adapters:
    """The adapters in a model, from ``attach`` until ``merge`` or ``remove``.

    Attributes:
        rank: of every adapter's two factors.
        blocks: how many blocks hold adapters, the last ones of the model.
        layers: how many linear layers hold one.
        trained: how many numbers train: those of the adapters, and the head's.
    """

    rank: int
    blocks: int
    layers: int
    trained: int
    _tuner: Any  # peft's
    _held: tuple[nn.Parameter, ...]  # trained before, and will again

    @classmethod
    def attach(cls, model: nn.Module, rank: int, *, frozen: int, seed: int) -> Adapters:
        """Put adapters that answer 0 into the blocks of ``model`` after the first ``frozen``.

        From then on they train, and what trains outside the encoder: the head, and the pooler that
        some encoders keep for it. Nothing else does.

        Args:
            model: a transformers model with a head, its first blocks held by ``freeze``.
            rank: 1 or more.
            frozen: how many blocks are.
            seed: of the adapters' first factors; the second ones are 0.

        Raises:
            ConfigError: every block is frozen, the blocks are not recognised, or there is no linear
                layer in them.
            BackendUnavailableError: PEFT is not installed.
        """
        blocks = _blocks_behind(model, frozen)
        layers = _linear_layers(model, blocks)
        training = [each for each in model.parameters() if each.requires_grad]
        head = set(_head_parameters(model))
        tuner = _inject(model, list(layers), rank, _is_transposed(layers.values()), seed)
        for parameter in head.intersection(training):
            parameter.requires_grad_(True)
        trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
        held = tuple(each for each in training if not each.requires_grad)
        return cls(rank, len(blocks), len(layers), trained, tuner, held)

    def merge(self) -> None:
        """Add the adapters to the weights beside them and take them out of the model."""
        self._tuner.merge_and_unload()
        self._release()

    def remove(self) -> None:
        """Take the adapters out of the model; the weights beside them are as they were."""
        self._tuner.unload()
        self._release()

    def record(self) -> dict[str, int]:
        """The figures, for ``--json`` and metrics.json."""
        return {
            "rank": self.rank,
            "alpha": _ALPHA_OF_RANK * self.rank,
            "blocks": self.blocks,
            "layers": self.layers,
            "trained_parameters": self.trained,
        }

    def _release(self) -> None:
        for parameter in self._held:
            parameter.requires_grad_(True)


def _blocks_behind(model: nn.Module, frozen: int) -> list[nn.Module]:
    try:
        blocks = find_blocks(model)
    except ConfigError:
        raise ConfigError(
            f"--lora: {type(model).__name__} has no list of separate blocks to put adapters into; "
            "leave --lora out"
        ) from None
    if frozen >= len(blocks):
        raise ConfigError(
            f"--lora: all {len(blocks)} blocks are frozen, and adapters go into those that are "
            f"not; freeze at most {len(blocks) - 1}, or leave --lora out"
        )
    return blocks[frozen:]


def _linear_layers(model: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """The linear layers of ``blocks``, by their names in ``model``."""
    inside = {layer for block in blocks for layer in block.modules()}
    # These read the weights of their linear layers without calling them: no adapter would be heard.
    deaf = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    inside -= {layer for each in inside if isinstance(each, deaf) for layer in each.modules()}
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if layer in inside and isinstance(layer, _linear_kinds())
    }
    if not layers:
        raise ConfigError(
            f"--lora: there is no linear layer for an adapter in the {len(blocks)} blocks of "
            f"{type(model).__name__} that are not frozen; leave --lora out"
        )
    return layers


def _linear_kinds() -> tuple[type[nn.Module], ...]:
    from transformers.pytorch_utils import Conv1D

    return (nn.Linear, Conv1D)  # GPT-2's Conv1D is a linear layer, its weight transposed


def _is_transposed(layers: Iterable[nn.Module]) -> bool:
    return not any(isinstance(layer, nn.Linear) for layer in layers)


def _inject(model: nn.Module, names: Sequence[str], rank: int, transposed: bool, seed: int) -> Any:
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"--lora needs {error.name}; pip install 'edgewright[train]'"
        ) from error
    config = LoraConfig(
        r=rank,
        lora_alpha=_ALPHA_OF_RANK * rank,
        lora_dropout=0.0,
        target_modules=list(names),
        fan_in_fan_out=transposed,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LoraModel(model, config, "default")


def _head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What lies outside the encoder, and a pooler in it."""
    encoder = encoder_of(model)
    if encoder is None:
        layers = [each for each in model.modules() if type(each) is nn.Linear]
        return list(layers[-1].parameters()) if layers else []
    body = {parameter for name, parameter in encoder.named_parameters() if "pooler." not in name}
    return [parameter for parameter in model.parameters() if parameter not in body]
