import numpy as np
import pytest
import torch
from tiny_models import make_rows, tiny_classifier

from edgewright.errors import ConfigError
from edgewright.finetune.batches import TokenRows
from edgewright.finetune.evaluate import cross_entropy, predict_logits, score
from edgewright.preprocess import TextPreprocessor

CPU = torch.device("cpu")


@pytest.fixture
def rows(model_folder):
    preprocessor = TextPreprocessor.from_pretrained(str(model_folder), max_length=32)
    texts = [text for text, _ in make_rows(30)]
    return TokenRows.of(preprocessor, texts, np.arange(30) % 3)


def test_logits_come_in_the_order_of_the_rows_whatever_the_batches(rows):
    model = tiny_classifier("bert")
    alone = np.concatenate(
        [model(**rows.inputs(np.array([i]))).logits.detach().numpy() for i in range(30)]
    )
    for batch_rows in (1, 7, 32):
        logits = predict_logits(model, rows, CPU, batch_rows)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, alone, atol=1e-5)


def test_a_model_in_train_mode_answers_without_dropout_or_graph(rows):
    model = tiny_classifier("bert")
    graphs = []
    model.classifier.register_forward_hook(lambda _m, _i, out: graphs.append(out.grad_fn))
    first = predict_logits(model.train(), rows, CPU)
    assert np.array_equal(predict_logits(model.train(), rows, CPU), first)
    assert set(graphs) == {None}


def test_a_batch_that_does_not_fit_is_halved(rows):
    model = tiny_classifier("bert")
    expected = predict_logits(model, rows, CPU, 4)
    forward = model.forward

    def limited(**inputs):
        if len(inputs["input_ids"]) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return forward(**inputs)

    model.forward = limited
    np.testing.assert_allclose(predict_logits(model, rows, CPU, 32), expected, atol=1e-6)


def test_a_row_that_does_not_fit_alone_is_an_error_with_the_way_out(rows):
    model = tiny_classifier("bert")

    def full(**_inputs):
        raise torch.OutOfMemoryError("out of memory")

    model.forward = full
    with pytest.raises(ConfigError, match=r"one row; lower --max-length"):
        predict_logits(model, rows, CPU)


def test_scores_are_those_of_torch():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)).astype(np.float32) * 9, rng.integers(0, 4, 50)
    scores = score(labels, logits)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels))
    assert scores.loss == pytest.approx(expected.item(), rel=1e-5)
    assert (scores.n, scores.correct) == (50, int((logits.argmax(1) == labels).sum()))
    assert scores.accuracy == scores.correct / 50


def test_a_hopeless_answer_has_a_finite_loss():
    logits = np.array([[1e4, -1e4]], np.float32)
    assert cross_entropy(np.array([1]), logits) == pytest.approx([2e4])


def test_no_rows_have_no_scores(model_folder):
    preprocessor = TextPreprocessor.from_pretrained(str(model_folder), max_length=8)
    rows = TokenRows.of(preprocessor, [], np.array([], np.int64))
    assert score(rows.labels, predict_logits(tiny_classifier("bert"), rows, CPU)) is None
