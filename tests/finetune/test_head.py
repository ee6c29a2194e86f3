"""The head is found by what it gives, and starts as the linear probe of what it reads."""

import numpy as np
import pytest
import torch
from made_up_rows import MadeUpRows
from tiny_models import tiny_classifier

from edgewright.finetune.device import autocast
from edgewright.finetune.evaluate import predict_logits
from edgewright.finetune.head import find_head, start_head
from edgewright.finetune.linear_probe import fit_probe
from edgewright.finetune.survey import survey

CPU = torch.device("cpu")
HEADS = {
    "bert": "classifier",
    "roberta": "classifier.out_proj",
    "electra": "classifier.out_proj",
    "distilbert": "classifier",
    "mpnet": "classifier.out_proj",
}


@pytest.fixture(scope="module")
def rows():
    return MadeUpRows(90)


def look(model, rows, head=None, encoder=None):
    return survey(
        model, rows, CPU, head=head, encoder=encoder, precision=lambda: autocast(CPU, "fp32")
    )


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_the_layer_that_gives_the_logits(kind, rows):
    model = tiny_classifier(kind)
    assert find_head(model, rows.inputs([0, 1])) is model.get_submodule(HEADS[kind])


def test_logits_that_no_linear_layer_gives_have_no_head(rows):
    model = tiny_classifier("bert")
    model.classifier = torch.nn.Sequential(model.classifier, torch.nn.Tanh())
    assert find_head(model, rows.inputs([0])) is None


@pytest.mark.parametrize("kind", HEADS)
def test_what_the_head_reads_gives_the_logits(kind, rows):
    model = tiny_classifier(kind)
    head = find_head(model, rows.inputs([0]))
    seen = look(model, rows, head=head)
    with torch.no_grad():
        logits = head(torch.from_numpy(seen.head_inputs)).numpy()
    np.testing.assert_allclose(logits, predict_logits(model, rows, CPU), atol=1e-6)


def test_pooled_features_are_the_mean_of_a_rows_tokens_without_padding(rows):
    model = tiny_classifier("bert")
    pooled = look(model, rows, encoder=model.bert).pooled
    for index in (0, 17, 89):
        with torch.no_grad():
            states = model.bert(**rows.inputs([index])).last_hidden_state
        np.testing.assert_allclose(pooled[index], states[0].mean(0).numpy(), atol=1e-5)


def test_a_head_starts_as_the_probe_of_what_it_reads(rows):
    model = tiny_classifier("bert")
    head = find_head(model, rows.inputs([0]))
    features = look(model, rows, head=head).head_inputs
    before = float((predict_logits(model, rows, CPU).argmax(1) == rows.labels).mean())
    start_head(head, features, rows.labels, seed=0)
    logits = predict_logits(model, rows, CPU)
    weight, bias = fit_probe(features, rows.labels, 3, seed=0, inverse_penalty=0.1 / 90)
    np.testing.assert_allclose(logits, features @ weight.T + bias, atol=1e-4)
    assert float((logits.argmax(1) == rows.labels).mean()) > before
