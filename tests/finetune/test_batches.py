import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright.finetune.batches import (
    TokenRows,
    evaluation_batches,
    micro_batches,
    training_steps,
)
from edgewright.preprocess import TextPreprocessor

lengths = st.lists(st.integers(1, 200), min_size=1, max_size=300).map(
    lambda values: np.array(values, np.int64)
)
sizes = st.integers(1, 40)


@given(lengths, sizes, st.integers(0, 9), st.integers(1, 9))
def test_an_epoch_holds_every_row_once_in_full_steps_but_one(lengths, size, seed, epoch):
    steps = training_steps(lengths, size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(steps)) == list(range(len(lengths)))
    assert len(steps) == -(-len(lengths) // size)
    assert sorted(len(step) for step in steps)[1:] == [size] * (len(steps) - 1)


@given(lengths, sizes, st.integers(0, 9), st.integers(1, 9))
def test_an_epoch_can_be_repeated_without_the_ones_before(lengths, size, seed, epoch):
    one = training_steps(lengths, size, seed=seed, epoch=epoch)
    again = training_steps(lengths, size, seed=seed, epoch=epoch)
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))


def test_epochs_and_seeds_differ():
    lengths = np.arange(1, 200)
    orders = {
        tuple(np.concatenate(training_steps(lengths, 8, seed=seed, epoch=epoch)))
        for seed in (0, 1)
        for epoch in (1, 2)
    }
    assert len(orders) == 4


def test_rows_of_like_length_share_a_step():
    lengths = np.random.default_rng(0).integers(1, 500, 2000)
    steps = training_steps(lengths, 16, seed=0, epoch=1)
    padded = sum(len(step) * lengths[step].max() for step in steps)
    assert padded < 1.15 * lengths.sum()
    assert all(np.all(np.diff(lengths[step]) >= 0) for step in steps)


def test_long_and_short_steps_come_in_random_order():
    lengths = np.arange(16 * 16)
    means = [lengths[step].mean() for step in training_steps(lengths, 16, seed=0, epoch=1)]
    assert means != sorted(means)


@given(lengths, sizes)
def test_evaluation_visits_every_row_once_from_short_to_long(lengths, size):
    batches = evaluation_batches(lengths, size)
    order = np.concatenate(batches)
    assert sorted(order) == list(range(len(lengths)))
    assert np.all(np.diff(lengths[order]) >= 0)
    assert max(len(batch) for batch in batches) <= size


@settings(max_examples=30)
@given(st.integers(1, 50), sizes)
def test_micro_batches_are_the_step_in_order(rows, size):
    step = np.arange(rows)
    parts = micro_batches(step, size)
    assert np.array_equal(np.concatenate(parts), step)
    assert all(len(part) <= size for part in parts)


def test_rows_are_padded_to_the_longest_of_their_batch(model_folder):
    preprocessor = TextPreprocessor.from_pretrained(str(model_folder), max_length=8)
    texts = ["goal", "the match and the team", "bread " * 30]
    rows = TokenRows.of(preprocessor, texts, np.array([0, 0, 1]))
    assert list(rows.lengths) == [3, 7, 8]
    assert rows.truncated == 1
    inputs = rows.inputs(np.array([1, 0]))
    expected = preprocessor([texts[1], texts[0]]).arrays
    assert inputs.keys() == expected.keys()
    assert inputs["input_ids"].shape == (2, 7)
    assert all(np.array_equal(inputs[name], expected[name]) for name in expected)


def test_texts_are_unknown_where_more_than_half_of_their_own_tokens_are(model_folder):
    preprocessor = TextPreprocessor.from_pretrained(str(model_folder), max_length=8)
    texts = ["дом", "goal дом", "goal дом мир", "goal match", "", "дом мир сад лес вод час год"]
    known = [TokenRows.of(preprocessor, [text], np.array([0])).unknown for text in texts]
    assert known == [1, 0, 1, 0, 0, 1]
    assert TokenRows.of(preprocessor, texts, np.zeros(6, np.int64)).unknown == 3


def test_there_may_be_no_rows(model_folder):
    preprocessor = TextPreprocessor.from_pretrained(str(model_folder), max_length=8)
    rows = TokenRows.of(preprocessor, [], np.array([], np.int64))
    assert (len(rows.lengths), rows.truncated, rows.unknown) == (0, 0, 0)
    assert evaluation_batches(rows.lengths, 8) == []
