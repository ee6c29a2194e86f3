"""Tiny image classifiers of real architectures, and modules as a user would write them."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch import nn

SIDE = 32

_CONFIGS = {
    "resnet": lambda: transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 2, 1], layer_type="basic"
    ),
    "vit": lambda: transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        image_size=SIDE, patch_size=8,
    ),
    "convnext": lambda: transformers.ConvNextConfig(hidden_sizes=[8, 16, 24], depths=[1, 2, 1],
                                                    num_stages=3),
    "mobilenet_v2": lambda: transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=SIDE),
    "efficientnet": lambda: transformers.EfficientNetConfig(
        image_size=SIDE, width_coefficient=0.1, depth_coefficient=0.2, hidden_dim=128
    ),
    "swin": lambda: transformers.SwinConfig(
        image_size=SIDE, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=4
    ),
}  # fmt: skip
BLOCKS = {
    "resnet": 4, "vit": 4, "convnext": 4, "mobilenet_v2": 16, "efficientnet": 7, "swin": 3,
}  # fmt: skip


def vision_model(kind: str, labels: int = 3) -> nn.Module:
    """A random classifier, in eval mode."""
    torch.manual_seed(0)
    config = _CONFIGS[kind]()
    config.num_labels = labels
    return transformers.AutoModelForImageClassification.from_config(config).eval()


def save_vision_folder(folder: Path, kind: str = "resnet") -> Path:
    """A pre-trained encoder's folder, of random weights."""
    vision_model(kind).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    return folder


def pictures(rows: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, SIDE, SIDE, generator=generator)


USER_CODE = '''
"""A network as a user writes it: batch normalisation, one activation for all."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, labels, lists=("blocks",)):
        super().__init__()
        self.relu = nn.ReLU()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        for name in lists:
            setattr(self, name, nn.ModuleList(block() for _ in range(2)))
        self.lists = lists
        self.head = nn.Linear(8, labels)

    def forward(self, pictures):
        x = self.relu(self.stem(pictures))
        for name in self.lists:
            for block in getattr(self, name):
                x = x + self.relu(block(x))
        return self.head(x.mean(dim=(2, 3)))


class Chained(nn.Module):
    """Nothing goes past its blocks; it writes into what they answer."""

    def __init__(self, labels):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.place = nn.Parameter(torch.zeros(8, 1, 1))
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.head = nn.Linear(8, labels)

    def forward(self, pictures):
        x = self.stem(pictures) + self.place
        for each in self.blocks:
            x = torch.relu_(each(x))
        return self.head(x.mean(dim=(2, 3)))


def chained(labels):
    return Chained(labels)


def block():
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))


def net(labels):
    return Net(labels)


def staged(labels):
    return Net(labels, ("layer1", "layer2"))


def two_logits(labels):
    return Net(2)


def broken(labels):
    raise OSError("the weights are not there")


def no_module(labels):
    return labels


def text_only(labels):
    return nn.Embedding(10, labels)


def shared_norm(labels):
    made = Net(labels)
    norm = made.blocks[0][1]
    made.blocks[1][1] = norm
    return made


plain = 3
'''
