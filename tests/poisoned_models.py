"""Models of which one layer answers in float as before, and in int8 not at all.

Text: three channels of an attention head's values are made large and equal, and the product after them gets
huge weights for them that cancel in float. In int8 the step of every column is as large as the huge
weights make it: all other weights round to zero, and the three, each rounded by itself, no longer
cancel. Scales by column and SmoothQuant do not help.

Images: one channel before a depthwise convolution is huge and always the same, and the convolution
does not look at it. In int8 the step of the whole activation is as large as that channel makes it,
and the other channels round to zero.
"""

from __future__ import annotations

import torch
from torch import nn

# bfloat16, in which OpenVINO computes where the CPU can, holds its even parts exactly; int8 has 127
# steps for it.
HUGE = 512


def poison_attention_output(bert: nn.Module, layer: int) -> None:
    """Poison ``attention.output.dense`` of a BERT's layer, in place."""
    attention = bert.bert.encoder.layer[layer].attention
    value, dense = attention.self.value, attention.output.dense
    generator = torch.Generator().manual_seed(0)
    outputs = (len(dense.weight),)
    with torch.no_grad():
        for parameter in (value.weight, value.bias):
            parameter[:3] = 8 * parameter[0]
        part = 2 * torch.randint(HUGE // 8, HUGE * 3 // 8, outputs, generator=generator)
        sign = torch.randint(2, outputs, generator=generator) * 2 - 1
        dense.weight[:, 0] += sign * part
        dense.weight[:, 1] += sign * (HUGE - part)
        dense.weight[:, 2] -= sign * HUGE


SIDE = 8  # of the pictures that DepthwiseNet takes


class DepthwiseNet(nn.Module):
    """Two blocks: widen, convolve each channel by itself, narrow; nothing goes round them."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "expand": nn.Conv2d(16, 32, 1),
                    "depthwise": nn.Conv2d(32, 32, 3, padding=1, groups=32),
                    "project": nn.Conv2d(32, 16, 1),
                }
            )
            for _ in range(2)
        )
        self.head = nn.Linear(16 * SIDE * SIDE, labels)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(pictures))
        for block in self.blocks:
            wide = self.relu(block["expand"](x))
            x = block["project"](self.relu(block["depthwise"](wide)))
        return self.head(x.flatten(1))


def depthwise_net(labels: int) -> nn.Module:
    return DepthwiseNet(labels)


def poison_depthwise(net: DepthwiseNet, block: int, huge: float = 2000.0) -> None:
    """Poison ``blocks.<block>.depthwise``, in place."""
    expand, depthwise = net.blocks[block]["expand"], net.blocks[block]["depthwise"]
    with torch.no_grad():
        expand.weight[0] = 0
        expand.bias[0] = huge
        depthwise.weight[0] = 0


def train_on(net: nn.Module, pictures: torch.Tensor, labels: torch.Tensor, steps: int) -> None:
    """Seconds of AdamW."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    net.train()
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,), generator=generator)
        loss = nn.functional.cross_entropy(net(pictures[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
