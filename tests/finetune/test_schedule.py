import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_rows import MadeUpRows
from tiny_models import tiny_classifier

from edgewright.errors import ConfigError
from edgewright.finetune.config import FinetuneConfig
from edgewright.finetune.freeze import find_blocks, freeze
from edgewright.finetune.recipe import Recipe
from edgewright.finetune.schedule import adamw, layer_factors, warmup_cosine
from edgewright.finetune.train import fit


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_rate_rises_to_its_peak_and_falls_from_there(steps, warmup):
    factors = [warmup_cosine(step, steps, warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert max(factors) == 1


def test_the_rate_ends_near_zero():
    assert warmup_cosine(99, 100, 0.1) < 0.001


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.5)])
def test_the_rate_at_known_steps(step, factor):
    assert warmup_cosine(step, 100, 0.1) == pytest.approx(factor)


def test_only_matrices_decay_and_only_what_trains_is_updated():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 2))
    model[2].requires_grad_(False)
    groups = adamw(model, lr=0.1, weight_decay=0.3).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert groups[0]["params"][0] is model[0].weight
    assert len(groups[0]["params"]) == 1
    assert {id(p) for p in groups[1]["params"]} == {
        id(model[0].bias), id(model[1].weight), id(model[1].bias),
    }  # fmt: skip


def test_earlier_blocks_have_smaller_rates():
    model = tiny_classifier("bert")
    factors = layer_factors(model, find_blocks(model), 0.5)
    of = {name: factors.get(each, 1.0) for name, each in model.named_parameters()}
    assert of["bert.encoder.layer.3.output.dense.weight"] == 0.5
    assert of["bert.encoder.layer.0.output.dense.bias"] == 0.5**4
    assert of["bert.embeddings.word_embeddings.weight"] == 0.5**5
    assert of["bert.pooler.dense.weight"] == of["classifier.bias"] == 1.0


def test_a_step_moves_each_block_by_its_factor():
    """The first step of AdamW moves by the rate, whatever the gradient's size."""
    moved = {}
    for decay in (1.0, 0.1):
        model = tiny_classifier("bert")
        rows = MadeUpRows(8)
        part = freeze(model, 2, rows.inputs([0]))
        before = {name: each.clone() for name, each in model.named_parameters()}
        factors = layer_factors(model, find_blocks(model), decay)
        recipe = Recipe(epochs=1, lr=1e-3, batch_size=8, warmup=0.0, weight_decay=0.0, clip_norm=0)
        fit(model, rows, recipe, torch.device("cpu"), validate=lambda: None, factors=factors)
        for name, each in model.named_parameters():
            moved[name, decay] = float((each.detach() - before[name].detach()).abs().max())
        assert part.blocks == 2
    block = "bert.encoder.layer.{}.attention.self.value.weight"
    assert moved[block.format(3), 0.1] == pytest.approx(0.1 * moved[block.format(3), 1.0], rel=0.05)
    assert moved[block.format(2), 0.1] == pytest.approx(
        0.01 * moved[block.format(2), 1.0], rel=0.05
    )
    assert moved["classifier.weight", 0.1] == pytest.approx(
        moved["classifier.weight", 1.0], rel=0.05
    )
    assert moved[block.format(1), 0.1] == 0


@pytest.mark.parametrize("decay", [0.0, 1.1, -0.5])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ConfigError, match="--layer-decay"):
        FinetuneConfig(data="rows.csv", layer_decay=decay)
