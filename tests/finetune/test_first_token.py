"""The last block for the first token alone: the same logits and gradients, less work."""

import pytest
import torch
from made_up_rows import MadeUpRows
from tiny_models import tiny_classifier

from edgewright.finetune.first_token import compute_every_token, compute_first_token_only
from edgewright.finetune.freeze import find_blocks

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")

KNOWN = ["bert", "roberta", "electra", "distilbert"]


@pytest.fixture
def inputs():
    return MadeUpRows(6).inputs(range(6))


def logits_and_gradients(model, inputs):
    model.zero_grad()
    logits = model(**inputs).logits
    logits.square().sum().backward()
    return logits.detach(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("kind", KNOWN)
def test_logits_and_gradients_are_those_of_the_whole_block(kind, inputs):
    model = tiny_classifier(kind)
    logits, gradients = logits_and_gradients(model, inputs)
    assert compute_first_token_only(model, inputs)
    shorter, same = logits_and_gradients(model, inputs)
    torch.testing.assert_close(shorter, logits, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KNOWN)
def test_the_last_block_answers_one_token_until_it_is_undone(kind, inputs):
    model = tiny_classifier(kind)
    shapes = []
    find_blocks(model)[-1].register_forward_hook(lambda _b, _a, y: shapes.append(tuple(y[0].shape)))
    rows, tokens = inputs["input_ids"].shape
    compute_first_token_only(model, inputs)
    shapes.clear()
    model(**inputs)
    compute_every_token(model)
    model(**inputs)
    assert shapes == [(rows, 1, 32), (rows, tokens, 32)]


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_keys_and_values_are_not_computed_token_by_token(kind, inputs):
    model = tiny_classifier(kind)
    attention = find_blocks(model)[-1].attention.self
    called = []
    for layer in (attention.key, attention.value):
        layer.register_forward_hook(lambda *_: called.append(1))
    assert compute_first_token_only(model, inputs)
    called.clear()
    model(**inputs)
    assert not called


def test_an_adapter_beside_a_key_is_not_gone_past(inputs):
    class Adapted(torch.nn.Linear):
        def forward(self, states):
            return super().forward(states) + 0.1 * states

    model = tiny_classifier("bert")
    attention = find_blocks(model)[-1].attention.self
    attention.key.__class__ = attention.value.__class__ = Adapted
    logits, _ = logits_and_gradients(model, inputs)
    assert compute_first_token_only(model, inputs)
    torch.testing.assert_close(model(**inputs).logits, logits, rtol=1e-5, atol=1e-6)


def test_a_head_that_reads_every_token_is_left_alone(inputs):
    model = tiny_classifier("bert")
    model.bert.pooler.forward = lambda states: states.mean(dim=1)
    before = model(**inputs).logits
    assert not compute_first_token_only(model, inputs)
    torch.testing.assert_close(model(**inputs).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["mpnet", "deberta-v2", "modernbert", "gpt2", "albert"])
def test_blocks_of_another_form_are_left_alone(kind, inputs):
    model = tiny_classifier(kind)
    model.config.pad_token_id = 0
    before = model(**inputs).logits
    assert not compute_first_token_only(model, inputs)
    torch.testing.assert_close(model(**inputs).logits, before, rtol=0, atol=0)
