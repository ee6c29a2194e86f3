"""What batch normalisations validate with: the statistics of the weights that are validated."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgewright.errors import ConfigError
from edgewright.finetune.batch_statistics import (
    MOST_ROWS,
    measure_statistics,
    trained_normalisations,
)
from edgewright.finetune.freeze import FrozenPart, hold
from edgewright.finetune.recipe import Recipe
from edgewright.finetune.train import fit

CPU = torch.device("cpu")
MOMENTUM = 0.01  # EfficientNet's


@dataclass(eq=False)
class Points:
    """Points of two classes, which lie far from zero."""

    values: np.ndarray
    reads: int = 0

    @classmethod
    def draw(cls, count: int) -> "Points":
        rng = np.random.default_rng(5)
        sides = np.where(np.arange(count) % 2, 1.0, -1.0)
        return cls((rng.normal(size=(count, 3)) + sides[:, None] + 7).astype(np.float32))

    @property
    def labels(self):
        return np.arange(len(self.values)) % 2

    @property
    def lengths(self):
        return np.ones(len(self.values), np.int64)

    def inputs(self, indices):
        self.reads += len(indices)
        return {"values": torch.from_numpy(self.values[indices])}


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.BatchNorm1d(3, momentum=MOMENTUM)
        self.drop = torch.nn.Dropout(0.5)
        self.hidden = torch.nn.Linear(3, 4)
        self.second = torch.nn.BatchNorm1d(4, momentum=MOMENTUM)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, values):
        hidden = self.hidden(self.drop(self.first(values)))
        return SimpleNamespace(logits=self.head(torch.relu(self.second(hidden))))


def measure(net, points, steps):
    measure_statistics(net, points, steps, CPU, batch_size=16, precision="fp32")


def test_they_are_the_mean_and_the_variance_of_the_rows():
    net, points = Net(), Points.draw(64)
    measure(net, points, np.split(np.arange(64), 4))
    torch.testing.assert_close(net.first.running_mean.numpy(), points.values.mean(axis=0))
    variance = np.mean([part.var(axis=0, ddof=1) for part in np.split(points.values, 4)], axis=0)
    torch.testing.assert_close(net.first.running_var.numpy(), variance)
    with torch.no_grad():  # in eval mode: nothing was dropped out while it was measured
        hidden = net.hidden(torch.nn.functional.batch_norm(
            torch.from_numpy(points.values), None, None, net.first.weight, net.first.bias, True
        ))  # fmt: skip
    torch.testing.assert_close(net.second.running_mean, hidden.mean(dim=0), atol=0.05, rtol=0)


def test_a_validation_sees_the_weights_of_its_epoch_without_lag():
    net, points, answers = Net(), Points.draw(96), []

    def validate():
        net.eval()
        with torch.no_grad():
            validated = net(**points.inputs(np.arange(96))).logits
            net.first.train(), net.second.train()  # normalise by the very rows
            answers.append((validated, net(**points.inputs(np.arange(96))).logits))

    fit(net, points, Recipe(epochs=1, lr=0.02, batch_size=16), CPU, validate=validate)
    ((validated, without_lag),) = answers
    assert (validated - without_lag).abs().max() < 0.3
    assert net.first.momentum == MOMENTUM


def test_what_does_not_train_keeps_its_own():
    net, points = Net(), Points.draw(32)
    net.first.requires_grad_(False)
    before = net.first.running_mean.clone()
    measure(net, points, [np.arange(32)])
    assert torch.equal(net.first.running_mean, before)
    assert net.second.running_mean.abs().min() > 0


def test_what_is_held_keeps_its_own_though_nothing_in_it_could_train():
    net, points = Net(), Points.draw(32)
    net.first = torch.nn.Sequential(torch.nn.BatchNorm1d(3, affine=False))
    net(**points.inputs(np.arange(32)))
    before = net.first[0].running_mean.clone()
    hold(FrozenPart(1, 1, (net.first,)))
    measure(net, points, [np.arange(32)])
    assert torch.equal(net.first[0].running_mean, before)
    assert before.abs().min() > 0
    assert trained_normalisations(net) == [net.second]


@pytest.mark.parametrize(("count", "reads"), [(MOST_ROWS * 2, MOST_ROWS), (33, 33)])
def test_no_more_rows_are_read_than_it_takes(count, reads):
    points = Points.draw(count)
    measure(Net(), points, np.array_split(np.arange(count), -(-count // 32)))
    assert points.reads == reads


def test_what_does_not_train_keeps_its_own_in_training_too():
    net, points = Net(), Points.draw(32)
    net(**points.inputs(np.arange(32)))
    net.first.requires_grad_(False)
    before = net.first.running_mean.clone()
    fit(net, points, Recipe(epochs=1, lr=0.02, batch_size=8), CPU, validate=lambda: None)
    assert torch.equal(net.first.running_mean, before)
    assert before.abs().min() > 0


def test_a_pass_that_is_halved_for_memory_keeps_two_rows():
    net, points = Net(), Points.draw(12)
    forward = net.forward

    def limited(values):
        if len(values) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(values)

    net.forward = limited
    with pytest.raises(ConfigError, match="out of memory with a batch of 3 rows; lower"):
        fit(net, points, Recipe(epochs=1, lr=0.02, batch_size=6), CPU, validate=lambda: None)


def test_a_model_without_them_is_not_run():
    points = Points.draw(4)
    measure(torch.nn.Sequential(torch.nn.Linear(3, 2)), points, [np.arange(4)])
    assert points.reads == 0


def test_where_memory_is_short_they_are_measured_in_smaller_passes():
    net, points, passes = Net(), Points.draw(32), []
    forward = net.forward

    def limited(values):
        net.first(values)  # what a pass that fails has seen by then counts for nothing
        if len(values) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        passes.append(len(values))
        return forward(values)

    net.forward = limited
    measure(net, points, [np.arange(16), np.arange(16, 32)])
    assert passes == [4] * 8
    torch.testing.assert_close(net.first.running_mean.numpy(), points.values.mean(axis=0))
