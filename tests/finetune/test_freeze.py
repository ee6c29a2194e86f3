"""Frozen parts stay as they were, whatever training does around them."""

import hashlib

import numpy as np
import pytest
import torch
from tiny_models import tiny_classifier

from edgewright.errors import ConfigError
from edgewright.finetune.freeze import find_blocks, freeze, resolve_depth, thaw

# transformers' DeBERTa and ModernBERT use torch.jit when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")

KINDS = ["bert", "roberta", "electra", "distilbert", "mpnet", "deberta-v2", "modernbert"]


def batch(rows: int = 4, length: int = 9) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(np.random.default_rng(1).integers(5, 40, (rows, length)))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def digest(tensors) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def part_digest(part) -> str:
    buffers = [buffer for module in part.modules for buffer in module.buffers()]
    return digest([*part.parameters, *buffers])


def train_a_few_steps(model: torch.nn.Module) -> None:
    """As a careless loop would: every parameter in the optimiser, decay on all, train mode."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(
            model(**batch()).logits, torch.tensor([0, 1, 2, 0])
        ).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_buffers_of_the_frozen_part_do_not_move(kind):
    model = tiny_classifier(kind)
    part = freeze(model, 2, batch())
    before, rest = part_digest(part), digest(model.classifier.parameters())
    train_a_few_steps(model)
    assert part_digest(part) == before
    assert digest(model.classifier.parameters()) != rest


@pytest.mark.parametrize("kind", KINDS)
def test_the_frozen_part_answers_as_before_although_the_model_is_in_train_mode(kind):
    model = tiny_classifier(kind)
    last = find_blocks(model)[1]
    answers = []
    last.register_forward_hook(
        lambda _m, _i, out: answers.append(out[0] if isinstance(out, tuple) else out)
    )
    model(**batch())
    freeze(model, 2, batch())
    train_a_few_steps(model)
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_frozen_part_runs_without_a_graph_and_gets_no_gradient(kind):
    model = tiny_classifier(kind)
    part = freeze(model, 2, batch())
    answers = []
    find_blocks(model)[1].register_forward_hook(
        lambda _m, _i, out: answers.append(out[0] if isinstance(out, tuple) else out)
    )
    model.train()
    model(**batch()).logits.sum().backward()
    assert answers[0].grad_fn is None
    assert not answers[0].requires_grad
    assert all(parameter.grad is None for parameter in part.parameters)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert not set(trained) & set(part.parameters)


def test_no_grad_holds_even_for_an_input_that_wants_a_gradient():
    model = tiny_classifier("bert")
    freeze(model, 2, batch())
    hidden = torch.zeros(1, 3, 32, requires_grad=True)
    answer = model.bert.encoder.layer[1](hidden)
    assert not (answer[0] if isinstance(answer, tuple) else answer).requires_grad


def test_frozen_modules_stay_in_eval_and_the_others_do_not():
    model = tiny_classifier("bert")
    freeze(model, 3, batch())
    model.train()
    assert not any(module.training for module in model.bert.embeddings.modules())
    for block in model.bert.encoder.layer[:3]:
        assert not any(module.training for module in block.modules())
    assert all(module.training for module in model.bert.encoder.layer[3].modules())
    assert model.training
    assert model.classifier.training


def test_a_buffer_of_a_frozen_batch_norm_does_not_drift():
    model = tiny_classifier("bert")
    model.bert.embeddings.LayerNorm = torch.nn.Sequential(
        torch.nn.Unflatten(2, (32, 1)), torch.nn.Flatten(2), torch.nn.BatchNorm1d(9)
    )
    part = freeze(model, 1, batch())
    norm = model.bert.embeddings.LayerNorm[2]
    before = norm.running_mean.clone()
    train_a_few_steps(model)
    torch.testing.assert_close(norm.running_mean, before, rtol=0, atol=0)
    assert model.bert.embeddings in part.modules


def test_what_lies_beside_the_blocks_but_feeds_them_is_frozen_too():
    deberta = tiny_classifier("deberta-v2")
    freeze(deberta, 2, batch())
    assert not deberta.deberta.encoder.rel_embeddings.weight.requires_grad
    mpnet = tiny_classifier("mpnet")
    freeze(mpnet, 2, batch())
    assert not mpnet.mpnet.encoder.relative_attention_bias.weight.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_found_in_their_order(kind):
    model = tiny_classifier(kind, layers=3)
    order = []
    for index, block in enumerate(find_blocks(model)):
        block.register_forward_hook(lambda *_, index=index: order.append(index))
    model(**batch())
    assert order == [0, 1, 2]


def test_all_blocks_can_be_frozen_and_the_head_still_trains():
    model = tiny_classifier("bert")
    freeze(model, 1.0, batch())
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {
        "bert", "classifier",
    }  # fmt: skip
    assert all(p.requires_grad for p in model.bert.pooler.parameters())
    assert not any(p.requires_grad for p in model.bert.encoder.parameters())


def test_nothing_is_frozen_at_depth_0_even_where_blocks_are_unknown():
    model = tiny_classifier("albert")
    part = freeze(model, 0, batch())
    assert (part.blocks, part.of, part.modules) == (0, 4, ())
    assert all(p.requires_grad for p in model.parameters())


def test_thawing_gives_back_the_very_classes_and_trainability():
    model = tiny_classifier("distilbert")
    classes = [type(module) for module in model.modules()]
    trains = [p.requires_grad for p in model.parameters()]
    part = freeze(model, 2, batch())
    assert [type(module) for module in model.modules()] != classes
    thaw(part)
    assert [type(module) for module in model.modules()] == classes
    assert [p.requires_grad for p in model.parameters()] == trains


def test_shared_layers_are_refused_by_name_with_the_way_out():
    with pytest.raises(ConfigError, match=r"AlbertForSequenceClassification.*--freeze 0"):
        freeze(tiny_classifier("albert"), 2, batch())


def test_a_list_that_repeats_one_block_is_refused():
    model = tiny_classifier("bert")
    model.bert.encoder.layer[2] = model.bert.encoder.layer[1]
    with pytest.raises(ConfigError, match="separate blocks"):
        find_blocks(model)


def test_more_blocks_than_there_are_names_both_numbers():
    with pytest.raises(ConfigError, match=r"--freeze 9: the model has 4 blocks"):
        freeze(tiny_classifier("bert"), 9, batch())


@pytest.mark.parametrize(
    ("depth", "blocks", "frozen"),
    [(0.5, 6, 3), (0.5, 3, 1), (0.7, 10, 7), (0.67, 6, 4), (1.0, 12, 12), (0.1, 6, 0), (6, 6, 6)],
)
def test_a_share_is_rounded_down(depth, blocks, frozen):
    assert resolve_depth(depth, blocks) == frozen
