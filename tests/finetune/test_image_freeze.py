"""The frozen part of image models: blocks found in each family, batch statistics held."""

from __future__ import annotations

import pytest
import torch
from tiny_vision import BLOCKS, USER_CODE, pictures, vision_model
from torch import nn

from edgewright.errors import ConfigError
from edgewright.factories import Factory, FactoryClassifier, state_sha256
from edgewright.finetune.freeze import FrozenPart, find_blocks, freeze, thaw


@pytest.fixture
def users_code(tmp_path, monkeypatch):
    """A module of the user's that can be imported."""
    (tmp_path / "users_code.py").write_text(USER_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "users_code", raising=False)


def made(name: str, blocks: tuple[str, ...] = ()) -> FactoryClassifier:
    return FactoryClassifier.make(Factory("users_code", name, blocks), ["a", "b", "c"], seed=0)


def train(model: nn.Module, steps: int = 3) -> None:
    model.train()
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for step in range(steps):
        loss = model(pixel_values=pictures(4, step)).logits.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def held(model: nn.Module, part: FrozenPart) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the frozen part, by name."""
    inside = {id(each) for each in part.parameters}
    inside |= {id(b) for module in part.modules for b in module.buffers()}
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: each.detach().clone() for name, each in named if id(each) in inside}


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_blocks_of_each_family_are_found_in_order(kind: str) -> None:
    model = vision_model(kind)
    blocks = find_blocks(model)
    called: list[nn.Module] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda module, _: called.append(module))
    model(pixel_values=pictures(1))
    assert len(blocks) == BLOCKS[kind]
    assert called == blocks


@pytest.mark.parametrize("kind", BLOCKS)
def test_weights_and_batch_statistics_of_the_part_do_not_move(kind: str) -> None:
    model = vision_model(kind)
    part = freeze(model, 0.5, {"pixel_values": pictures(1)})
    before, whole = held(model, part), state_sha256(model)
    train(model)
    assert part.blocks == BLOCKS[kind] // 2
    assert before
    for name, tensor in held(model, part).items():
        assert torch.equal(tensor, before[name]), name
    assert state_sha256(model) != whole
    if kind in ("resnet", "mobilenet_v2", "efficientnet"):
        assert [name for name in before if name.endswith("running_mean")]
        fresh = vision_model(kind).state_dict()
        moved = [
            name
            for name, buffer in model.named_buffers()
            if name.endswith("running_mean") and not torch.equal(buffer, fresh[name])
        ]
        assert moved, "the part that trains keeps its statistics up to date"


def test_with_all_blocks_frozen_the_head_learns() -> None:
    model = vision_model("resnet")
    freeze(model, 1.0, {"pixel_values": pictures(1)})
    training = [name for name, each in model.named_parameters() if each.requires_grad]
    assert training == ["classifier.1.weight", "classifier.1.bias"]


@pytest.mark.usefixtures("users_code")
def test_a_users_blocks_are_its_attribute_or_what_is_named() -> None:
    model = made("net")
    assert find_blocks(model) == list(model.module.blocks)
    model = made("staged", ("layer1", "layer2"))
    assert find_blocks(model) == [*model.module.layer1, *model.module.layer2]


@pytest.mark.usefixtures("users_code")
@pytest.mark.parametrize(
    ("name", "blocks", "message"),
    [
        ("staged", (), "blocks is nothing; give the module an attribute 'blocks'.*--blocks layer1"),
        ("staged", ("layer1", "layer9"), "layer9 is nothing"),
        ("net", ("head",), "head is a Linear"),
    ],
)
def test_a_model_without_a_block_list_is_told_how_to_declare_one(
    name: str, blocks: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        freeze(made(name, blocks), 0.5, {"pixel_values": pictures(1)})
    assert freeze(made(name, blocks), 0, {"pixel_values": pictures(1)}).blocks == 0


@pytest.mark.usefixtures("users_code")
def test_an_activation_that_all_share_does_not_cut_the_gradient() -> None:
    model = made("net")
    part = freeze(model, 1, {"pixel_values": pictures(1)})
    before = held(model, part)
    last = model.module.blocks[1][0].weight.detach().clone()
    train(model)
    assert not torch.equal(model.module.blocks[1][0].weight, last)
    assert all(torch.equal(each, before[name]) for name, each in held(model, part).items())
    assert not model.module.stem[1].training
    thaw(part)
    model.train()
    assert model.module.stem[1].training


@pytest.mark.usefixtures("users_code")
def test_statistics_that_both_sides_share_are_refused() -> None:
    with pytest.raises(ConfigError, match="share weights"):
        freeze(made("shared_norm"), 1, {"pixel_values": pictures(1)})


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="--freeze 9: the model has 4 blocks"):
        freeze(vision_model("resnet"), 9, {"pixel_values": pictures(1)})


def test_a_model_with_two_lists_is_refused_by_name() -> None:
    model = vision_model("resnet")
    model.more = nn.ModuleList([nn.Linear(1, 1)])
    with pytest.raises(ConfigError, match=r"ResNetForImageClassification: .* 2 lists of blocks"):
        freeze(model, 1, {"pixel_values": pictures(1)})
