"""What a classifier's head reads, of every kind of head."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_classifier

from edgewright.optimize.head_input import HeadInput

IDS = torch.tensor([[2, 8, 9, 10, 3], [2, 11, 12, 13, 3]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def first_token(model: Any) -> torch.Tensor:
    return model.base_model(**INPUTS).last_hidden_state[:, 0]


def pooler(model: Any) -> torch.Tensor:
    return model.base_model(**INPUTS).pooler_output


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # in transformers
@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("bert", pooler),
        ("albert", pooler),
        ("roberta", first_token),
        ("electra", first_token),
        ("distilbert", first_token),
        ("mpnet", first_token),
        ("deberta-v2", first_token),
        ("modernbert", first_token),
    ],
)
def test_it_is_the_pooled_vector_before_the_first_layer_of_the_head(kind: str, read: Any) -> None:
    model = tiny_classifier(kind)
    head = HeadInput.of(model, INPUTS)
    assert head is not None
    with torch.inference_mode():
        expected = read(model)
        model(**INPUTS)
    assert head.width == 32
    np.testing.assert_allclose(head.value.numpy(), expected.numpy(), atol=1e-6)


def test_a_decoder_has_no_such_vector() -> None:
    model: Any = tiny_classifier("gpt2")
    model.config.pad_token_id = 0
    assert HeadInput.of(model, INPUTS) is None


class Factorys(torch.nn.Module):
    """A factory's model: what is its encoder nobody says, and a linear layer is within it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

    def forward(self, pixel_values: torch.Tensor) -> Any:
        self.read = torch.relu(self.inner(pixel_values))
        return SimpleNamespace(logits=self.last(self.read))


def test_of_a_factorys_model_it_is_what_the_logits_are_made_of() -> None:
    model = Factorys().eval()
    head = HeadInput.of(model, {"pixel_values": torch.ones(2, 4)})
    assert head is not None
    model(torch.arange(8.0).reshape(2, 4))
    assert torch.equal(head.value, model.read)


def test_logits_that_are_changed_after_the_last_layer_have_no_head() -> None:
    model = Factorys().eval()
    plain = model.forward
    model.forward = lambda pixel_values: SimpleNamespace(logits=plain(pixel_values).logits * 2)
    assert HeadInput.of(model, {"pixel_values": torch.ones(2, 4)}) is None
