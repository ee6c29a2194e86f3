"""What crosses the cut is enough for the rest of the model, and only then is it relied on."""

import pytest
import torch
from made_up_rows import MadeUpRows
from tiny_models import tiny_classifier

from edgewright.errors import ConfigError
from edgewright.finetune.cut import Cut, Replayed, UncacheableError, record
from edgewright.finetune.freeze import find_blocks

# transformers' DeBERTa and ModernBERT use torch.jit when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")

KINDS = ["bert", "roberta", "electra", "distilbert", "mpnet", "deberta-v2", "modernbert"]


@pytest.fixture
def inputs():
    return MadeUpRows(6).inputs(range(6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_the_rest_of_the_model_answers_from_what_crossed_the_cut(kind, blocks, inputs):
    model = tiny_classifier(kind)
    cut = Cut.find(model, blocks, inputs)
    with torch.no_grad():
        live = model(**inputs).logits
        (activations,) = record([cut], inputs)
        replayed = Replayed(cut)(activations, **inputs).logits
    torch.testing.assert_close(replayed, live, rtol=0, atol=1e-6)


def test_blocks_before_the_cut_do_not_run_when_activations_are_given(inputs):
    model = tiny_classifier("bert")
    cut = Cut.find(model, 2, inputs)
    (activations,) = record([cut], inputs)
    ran = []
    for block in find_blocks(model):
        block.attention.register_forward_hook(lambda module, *_: ran.append(module))
    model.bert.embeddings.word_embeddings.register_forward_hook(lambda *_: ran.append("embedding"))
    Replayed(cut)(activations, **inputs)
    assert ran == [block.attention for block in find_blocks(model)[2:]]


def test_a_pass_that_records_ends_at_the_deepest_cut(inputs):
    model = tiny_classifier("bert")
    cuts = [Cut.find(model, blocks, inputs) for blocks in (3, 1)]
    ran = []
    find_blocks(model)[3].register_forward_hook(lambda *_: ran.append(4))
    third, first = record(cuts, inputs)
    assert ran == []
    torch.testing.assert_close(record(cuts[:1], inputs)[0], third)
    torch.testing.assert_close(record(cuts[1:], inputs)[0], first)


def test_a_model_is_whole_again_after_a_replayed_pass(inputs):
    model = tiny_classifier("bert")
    before = model(**inputs).logits
    cut = Cut.find(model, 2, inputs)
    Replayed(cut)(torch.zeros_like(record([cut], inputs)[0]), **inputs)
    torch.testing.assert_close(model(**inputs).logits, before)


def test_gradients_reach_the_rest_of_the_model_and_no_further(inputs):
    model = tiny_classifier("bert")
    cut = Cut.find(model, 2, inputs)
    Replayed(cut)(record([cut], inputs)[0], **inputs).logits.sum().backward()
    moved = {name for name, each in model.named_parameters() if each.grad is not None}
    assert any("layer.2" in name for name in moved)
    assert not any("layer.0" in name or "layer.1." in name or "embed" in name for name in moved)


def test_a_model_that_reads_more_than_its_last_frozen_block_is_refused(inputs):
    model = tiny_classifier("bert")
    forward = model.classifier.forward
    first = []
    find_blocks(model)[0].register_forward_hook(lambda _b, _a, answer: first.append(answer[0]))
    model.classifier.forward = lambda pooled: forward(pooled + first[-1][:, 0])
    with pytest.raises(UncacheableError, match="needs more than their answer"):
        Cut.find(model, 2, inputs)


def test_shared_blocks_are_refused(inputs):
    with pytest.raises(ConfigError, match="ALBERT"):
        Cut.find(tiny_classifier("albert"), 2, inputs)
