"""The linear probe: on raw features, out of fold, for classes of any size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from edgewright.errors import DataError
from edgewright.finetune import linear_probe as probe
from edgewright.finetune.linear_probe import cross_validated_probabilities, fit_probe, softmax


@pytest.fixture(scope="module")
def digits():
    """1,797 handwritten digits: pixels, some of them constant, and labels."""
    data = load_digits()
    return data.data.astype(np.float32), data.target.astype(np.int64)


def test_a_fitted_probe_classifies_features_as_they_are(digits):
    features, labels = digits
    weight, bias = fit_probe(features[:1000], labels[:1000], 10, seed=0)
    assert (weight.shape, bias.shape) == ((10, 64), (10,))
    predicted = (features[1000:] @ weight.T + bias).argmax(axis=1)
    assert np.mean(predicted == labels[1000:]) > 0.9


def test_the_scale_and_place_of_a_feature_change_nothing(digits):
    features, labels = digits
    moved = features * np.float32(7) + np.float32(100)
    answers = []
    for each in (features, moved):
        weight, bias = fit_probe(each[:500], labels[:500], 10, seed=0)
        answers.append(softmax(each @ weight.T + bias))
    assert np.allclose(*answers, atol=1e-2)


def test_two_classes_get_two_rows_of_weights_that_agree_with_one_logit(digits):
    features, labels = digits
    pair = labels < 2
    weight, bias = fit_probe(features[pair], labels[pair], 2, seed=0)
    assert np.allclose(weight[0], -weight[1])
    scores = features[pair] @ weight.T + bias
    assert np.mean(scores.argmax(axis=1) == labels[pair]) > 0.98


def test_a_class_without_rows_gets_a_low_finite_score(digits):
    features, labels = digits
    known = labels != 3
    weight, bias = fit_probe(features[known], labels[known], 10, seed=0)
    scores = softmax(features @ weight.T + bias)
    assert not weight[3].any()
    assert np.isfinite(bias).all()
    assert scores[:, 3].max() < 0.05
    alone = labels == 4
    weight, bias = fit_probe(features[alone], labels[alone], 10, seed=0)
    assert (features @ weight.T + bias).argmax(axis=1).tolist() == [4] * len(features)


def test_no_row_is_judged_by_a_probe_that_has_seen_it():
    """Labels drawn at random cannot be guessed, except by memory."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 400)).astype(np.float32)
    labels = rng.integers(0, 2, 300)
    probabilities = cross_validated_probabilities(features, labels, 2, seed=0)
    assert 0.35 < np.mean(probabilities.argmax(axis=1) == labels) < 0.65


@pytest.mark.parametrize(("rows", "classes"), [(10, 2), (10, 10), (2, 2), (7, 1), (230, 100)])
def test_any_number_of_rows_and_classes_gives_probabilities(rows, classes):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(rows, 8)).astype(np.float32)
    labels = np.arange(rows) % classes
    scores = cross_validated_probabilities(features, labels, classes, seed=0, repeats=2)
    assert scores.shape == (rows, classes)
    assert np.allclose(scores.sum(axis=1), 1)
    assert np.isfinite(scores).all()


@given(st.lists(st.integers(0, 8), min_size=2, max_size=60), st.integers(2, 5), st.integers(0, 9))
def test_each_class_is_dealt_over_the_folds_as_evenly_as_can_be(labels, folds, seed):
    labels = np.array(labels)
    fold_of = probe._deal(labels, min(folds, len(labels)), np.random.default_rng(seed))
    for each in {*labels.tolist()}:
        counts = np.bincount(fold_of[labels == each], minlength=min(folds, len(labels)))
        assert counts.max() - counts.min() <= 1
    assert set(fold_of.tolist()) == set(range(min(folds, len(labels))))


def test_many_classes_of_few_rows_get_a_weaker_penalty_than_two_of_noise():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 64)).astype(np.float32)
    strong = probe.choose_penalty(noise, rng.integers(0, 2, 400), 2, seed=0)
    centres = 3 * rng.normal(size=(100, 64))
    labels = np.arange(500) % 100
    clear = (centres[labels] + rng.normal(size=(500, 64))).astype(np.float32)
    assert strong < probe.choose_penalty(clear, labels, 100, seed=0)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(digits):
    features, labels = digits[0][:300], digits[1][:300]
    one, two, other = (
        cross_validated_probabilities(features, labels, 10, seed=seed) for seed in (3, 3, 4)
    )
    assert one.tobytes() == two.tobytes()
    assert one.tobytes() != other.tobytes()


def test_a_fit_takes_no_more_rows_than_it_needs_and_all_of_the_rare_classes(digits, monkeypatch):
    monkeypatch.setattr(probe, "FIT_ROWS", 300)
    features, labels = digits
    keep = (labels != 7) | (np.cumsum(labels == 7) <= 6)
    features, labels = features[keep], labels[keep]
    seen = []
    regress = probe._regress
    monkeypatch.setattr(
        probe, "_regress", lambda x, y, n, c: seen.append(np.bincount(y)) or regress(x, y, n, c)
    )
    fit_probe(features, labels, 10, seed=0, inverse_penalty=0.1)
    assert seen[0].sum() == 300
    assert seen[0][7] == 6
    probabilities = cross_validated_probabilities(features, labels, 10, seed=0)
    assert np.mean(probabilities.argmax(axis=1) == labels) > 0.9  # every row, not the 300 alone


def test_features_that_are_no_numbers_are_refused(digits):
    features, labels = digits[0][:50].copy(), digits[1][:50]
    features[3, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        fit_probe(features, labels, 10, seed=0)
    with pytest.raises(DataError, match="2 rows or more"):
        cross_validated_probabilities(digits[0][:1], labels[:1], 10, seed=0)
