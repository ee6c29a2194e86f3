"""Weights between the old and the new ones."""

import copy

import pytest
import torch
from tiny_models import tiny_classifier

from edgewright.finetune.interpolation import Movement, encoder_of, fresh_tensors


class Small(torch.nn.Module):
    """Weights, buffers that are floats, and a counter; its head is drawn."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.body = torch.nn.Linear(2, 2)
        self.norm = torch.nn.BatchNorm1d(2)
        self.head = torch.nn.Linear(2, 2)
        self.still = torch.nn.Parameter(torch.ones(3))
        for name, tensor in self.state_dict().items():
            if name != "still":
                tensor.fill_(value)


@pytest.fixture
def models():
    return Small(1.0), Small(3.0)


HEAD = frozenset({"head.weight", "head.bias"})


def test_only_what_moved_is_kept(models):
    before, after = models
    movement = Movement.between(before, after, HEAD)
    assert "still" not in movement.old
    assert movement.old.keys() == movement.new.keys() == before.state_dict().keys() - {"still"}
    assert Movement.between(before, copy.deepcopy(before), HEAD).old == {}


def test_a_mixture_lies_on_the_line_and_a_drawn_head_stays_new(models):
    before, after = models
    movement = Movement.between(before, after, HEAD)
    movement.mix(after, 0.25)
    mixed = after.state_dict()
    assert mixed["body.weight"].unique().tolist() == [1.5]
    assert mixed["norm.running_var"].unique().tolist() == [1.5]
    assert mixed["norm.num_batches_tracked"].item() == 3
    assert mixed["head.bias"].unique().tolist() == [3.0]
    assert mixed["still"].unique().tolist() == [1.0]


def test_the_ends_are_the_old_and_the_new_weights_to_the_bit():
    before, after = tiny_classifier("bert"), tiny_classifier("bert")
    with torch.no_grad():
        for each in after.parameters():
            each.add_(torch.randn_like(each) / 7)
    trained = copy.deepcopy(after)
    movement = Movement.between(before, after, frozenset())
    for share in (0.3, 0.7, 0.0):
        movement.mix(after, share)
    assert all(map(torch.equal, after.state_dict().values(), before.state_dict().values()))
    movement.mix(after, 1.0)
    assert all(map(torch.equal, after.state_dict().values(), trained.state_dict().values()))


def test_restoring_brings_the_first_head_back_too(models):
    before, after = models
    movement = Movement.between(before, after, HEAD)
    movement.restore(after)
    assert all(map(torch.equal, after.state_dict().values(), before.state_dict().values()))


def test_the_head_and_a_pooler_that_the_folder_lacks_are_fresh(tmp_path):
    model = tiny_classifier("bert")
    model.bert.save_pretrained(tmp_path / "with")
    assert fresh_tensors(model, tmp_path / "with") == {"classifier.weight", "classifier.bias"}
    model.bert.pooler = None
    model.bert.save_pretrained(tmp_path / "without")
    again = tiny_classifier("bert")
    assert fresh_tensors(again, tmp_path / "without") == {
        "classifier.weight", "classifier.bias",
        "bert.pooler.dense.weight", "bert.pooler.dense.bias",
    }  # fmt: skip


def test_a_model_without_a_known_encoder_has_its_last_linear_layer_for_a_head(tmp_path):
    assert encoder_of(Small(1.0)) is None
    assert fresh_tensors(Small(1.0), tmp_path) == {"head.weight", "head.bias"}
