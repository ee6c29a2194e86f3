"""The blocks of image models, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from edgewright.errors import ConfigError
from edgewright.factories import FactoryClassifier

_INSIDE_STAGES = ("layers", "blocks")  # where transformers' stages keep their blocks


def reads_images(model: nn.Module) -> bool:
    """Whether it takes pictures."""
    return getattr(model, "main_input_name", "") == "pixel_values"


def image_blocks(model: nn.Module, class_of: Callable[[nn.Module], type] = type) -> list[nn.Module]:
    """What the author of a factory declared or, in a transformers model, the blocks of its stages.

    Those models keep their blocks (ViT, MobileNetV2, EfficientNet) or stages of blocks (ResNet,
    ConvNeXt, Swin) in one outermost list of modules of one class, which ``class_of`` tells.

    Raises:
        ConfigError: there are none, or it cannot be told which they are.
    """
    if isinstance(model, FactoryClassifier):
        return model.block_list()
    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each)]
    inner = {module for each in lists for module in each.modules() if module is not each}
    outermost = [
        each for each in lists if each not in inner and len({class_of(part) for part in each}) == 1
    ]
    if len(outermost) != 1:
        raise ConfigError(
            f"{type(model).__name__}: cannot freeze a part of it, for it has {len(outermost)} "
            "lists of blocks or stages where one is expected; pass --freeze 0 to train all of it"
        )
    return [block for part in outermost[0] for block in _inside(part)]


def _inside(part: nn.Module) -> list[nn.Module]:
    """The blocks of a stage; a block itself."""
    for name in _INSIDE_STAGES:
        blocks = getattr(part, name, None)
        if isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks):
            return list(blocks)
    return [part]
