import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgewright.finetune.schedule import adamw, warmup_cosine


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
