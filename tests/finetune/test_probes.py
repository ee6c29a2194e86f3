"""The probes: what each one measures, and on which rows."""

import numpy as np
import pytest
import torch
import transformers
from tiny_models import bert_config, make_rows, save_tokenizer, tiny_classifier, write_csv

from edgewright.errors import DataError
from edgewright.examples import Columns, Examples, example_id
from edgewright.finetune.batches import RowSubset, TokenRows
from edgewright.finetune.masked_probe import MaskedProbe, load_masked_lm
from edgewright.finetune.neighbour_probe import (
    NeighbourProbe,
    embed,
    nearest_neighbours,
    neighbours_kept,
)
from edgewright.finetune.old_set import OldSetProbe, paired_change, read_old_set
from edgewright.finetune.probe import Reading
from edgewright.preprocess import TextPreprocessor

CPU = torch.device("cpu")


def token_rows(folder, count=60):
    preprocessor = TextPreprocessor.from_pretrained(str(folder), max_length=32)
    rows = make_rows(count)
    names = sorted({label for _, label in rows})
    labels = np.array([names.index(label) for _, label in rows])
    return TokenRows.of(preprocessor, [text for text, _ in rows], labels)


def shake(model, amount):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(torch.randn(each.shape, generator=generator) * amount)


class TestSample:
    def test_is_drawn_by_seed_and_reads_the_rows_it_is_of(self, model_folder):
        rows = token_rows(model_folder)
        one, two, other = (RowSubset.draw(rows, 20, seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(one.chosen, two.chosen)
        assert not np.array_equal(one.chosen, other.chosen)
        assert len(set(one.chosen.tolist())) == len(one.labels) == len(one.lengths) == 20
        place = int(one.chosen[3])
        assert torch.equal(
            one.inputs(np.array([3]))["input_ids"], rows.inputs(np.array([place]))["input_ids"]
        )
        assert one.labels[3] == rows.labels[place]


class TestNeighbours:
    def test_an_embedding_is_the_mean_over_the_tokens_without_padding(self, model_folder):
        rows, model = token_rows(model_folder, 20), tiny_classifier("bert")
        vectors = embed(model, rows, CPU)
        for index in range(20):
            inputs = rows.inputs(np.array([index]))
            with torch.no_grad():
                mean = model.bert(**inputs).last_hidden_state.mean(dim=1)[0].numpy()
            np.testing.assert_allclose(vectors[index], mean / np.linalg.norm(mean), atol=1e-5)

    def test_a_model_without_a_known_encoder_is_embedded_before_its_head(self, model_folder):
        class Bag(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.words, self.head = torch.nn.Embedding(99, 8), torch.nn.Linear(8, 3)

            def forward(self, input_ids, **_others):
                return type("Answer", (), {"logits": self.head(self.words(input_ids).mean(1))})()

        model, rows = Bag(), token_rows(model_folder, 5)
        one = rows.inputs(np.array([2]))
        mean = model.words(one["input_ids"]).mean(1)[0].detach().numpy()
        vectors = embed(model, RowSubset(rows, np.array([2])), CPU)
        np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-6)

    def test_the_nearest_are_those_of_largest_cosine_but_not_the_row_itself(self):
        angles = np.array([0.0, 0.1, 0.3, 2.0])
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        assert nearest_neighbours(vectors, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]

    def test_kept_counts_neighbours_in_any_order(self):
        before = np.array([[1, 2], [0, 2], [0, 1]])
        assert neighbours_kept(before, before[:, ::-1]) == 1.0
        assert neighbours_kept(before, np.array([[1, 3], [3, 4], [1, 0]])) == 0.5

    def test_an_encoder_that_stays_keeps_all_and_one_that_is_shaken_loses_more_the_more(
        self, model_folder
    ):
        rows, model = token_rows(model_folder), tiny_classifier("bert")
        probe = NeighbourProbe.of(model, rows, rows, CPU, seed=0, why="x")
        assert probe.before.figures["neighbours_kept"] == 1.0
        assert dict(probe.read(model).figures) == dict(probe.before.figures)
        kept = []
        for amount in (0.01, 0.3):
            shaken = tiny_classifier("bert")
            shake(shaken, amount)
            kept.append(probe.read(shaken).figures["neighbours_kept"])
        assert 1 > kept[0] > kept[1]

    def test_a_small_validation_split_leaves_the_probe_to_train_rows_and_says_so(
        self, model_folder
    ):
        rows, model = token_rows(model_folder), tiny_classifier("bert")
        few = RowSubset.draw(rows, 5, seed=0)
        probe = NeighbourProbe.of(model, few, rows, CPU, seed=0, why="x")
        assert probe.rows == 60
        assert "train (validation is too small)" in probe.reason


@pytest.fixture(scope="module")
def masked_folder(tmp_path_factory):
    """A pre-trained BERT that still has the head it was pre-trained with."""
    folder = tmp_path_factory.mktemp("masked")
    torch.manual_seed(3)
    transformers.BertForMaskedLM(bert_config()).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


class TestMasked:
    def test_only_a_folder_with_the_whole_head_has_the_probe(
        self, masked_folder, model_folder, tmp_path
    ):
        rows = token_rows(masked_folder)
        assert MaskedProbe.of(masked_folder, rows, CPU, seed=0) is not None
        assert MaskedProbe.of(model_folder, rows, CPU, seed=0) is None
        tiny_classifier("bert").save_pretrained(tmp_path / "classifier")
        assert load_masked_lm(tmp_path / "classifier") is None
        tiny_classifier("gpt2").save_pretrained(tmp_path / "decoder")
        assert load_masked_lm(tmp_path / "decoder") is None
        assert MaskedProbe.of(masked_folder, RowSubset.draw(rows, 0, seed=0), CPU, seed=0) is None

    def test_where_chance_hides_no_token_there_is_nothing_to_ask(self, masked_folder):
        preprocessor = TextPreprocessor.from_pretrained(str(masked_folder), max_length=32)
        rows = TokenRows.of(preprocessor, ["goal"], np.array([0]))
        assert MaskedProbe.of(masked_folder, rows, CPU, seed=0) is None

    def test_the_loss_is_that_of_the_whole_model_at_the_hidden_tokens(
        self, masked_folder, monkeypatch
    ):
        from edgewright.finetune import masked_probe

        probe = MaskedProbe.of(masked_folder, token_rows(masked_folder), CPU, seed=0)
        model = transformers.BertForMaskedLM.from_pretrained(masked_folder).eval()

        def whole(_model, inputs, places):
            return model(**inputs).logits[places]

        monkeypatch.setattr(masked_probe, "_logits_at", whole)
        expected = probe.read(model)
        assert expected.figures == pytest.approx(dict(probe.before.figures), rel=1e-5)
        tokens = sum(token_rows(masked_folder).lengths - 2)
        assert 0.08 < probe.before.figures["tokens"] / tokens < 0.22

    def test_special_tokens_and_padding_are_never_hidden(self, masked_folder):
        from edgewright.finetune.masked_probe import _Hidden

        rows = token_rows(masked_folder)
        hidden = _Hidden(rows, 4, np.array([0, 1, 2, 3, 4]), seed=0)
        wanted = torch.cat([ids for _, _, ids in hidden.batches()])
        assert wanted.min() > 4
        again = torch.cat([ids for _, _, ids in hidden.batches()])
        assert torch.equal(wanted, again)

    def test_it_reads_the_encoder_it_is_given_below_the_old_head(self, masked_folder):
        probe = MaskedProbe.of(masked_folder, token_rows(masked_folder), CPU, seed=0)
        same = transformers.AutoModelForSequenceClassification.from_pretrained(
            masked_folder, num_labels=3
        )
        assert probe.read(same).figures == dict(probe.before.figures)
        shake(same, 0.2)
        shaken = probe.read(same).figures
        assert shaken["pseudo_perplexity"] > probe.before.figures["pseudo_perplexity"]


LABELS = ("food", "sports", "tech")


def examples_of(rows, splits):
    texts = [text for text, _ in rows]
    ids = [example_id(text) for text in texts]
    labels = np.array([LABELS.index(label) for _, label in rows])
    return Examples(ids, texts, labels, splits, ids, LABELS)


class TestOldSet:
    def test_rows_held_out_for_later_and_texts_of_two_labels_are_set_aside(self, tmp_path):
        rows = make_rows(12)
        splits = ["train", "validation", "calibrate", "search", "certify", "test"]
        examples = examples_of(rows[:6], splits)
        file = write_csv(tmp_path / "old.csv", [*rows, (rows[11][0], "tech"), rows[10]])
        old = read_old_set(str(file), Columns(), LABELS, examples)
        expected = {text for i, (text, _) in enumerate(rows) if i not in (2, 3, 4, 5, 11)}
        assert set(old.contents) == expected
        assert (old.trained, old.set_aside, old.classes) == (1, 5, 3)
        told = dict(zip(old.contents, old.labels.tolist(), strict=True))
        assert told[rows[7][0]] == LABELS.index(rows[7][1])

    def test_no_row_left_is_an_error_with_the_way_out(self, tmp_path):
        rows = make_rows(3)
        file = write_csv(tmp_path / "old.csv", rows)
        with pytest.raises(DataError, match="no row is left to measure on: 3 texts.*other rows"):
            read_old_set(str(file), Columns(), LABELS, examples_of(rows, ["certify"] * 3))

    def test_labels_of_another_task_are_refused_by_place(self, tmp_path):
        file = write_csv(tmp_path / "old.csv", [("rain", "weather"), ("goal", "sports")])
        with pytest.raises(DataError, match=r"row 1 \(line 2\): 'weather'.*food, sports, tech"):
            read_old_set(str(file), Columns(), LABELS, examples_of([], []))

    def test_before_counts_only_the_classes_there_were(self, tmp_path, model_folder):
        rows = token_rows(model_folder, 30)
        old = read_old_set(
            str(write_csv(tmp_path / "old.csv", make_rows(30))), Columns(), LABELS,
            examples_of([], []),
        )  # fmt: skip
        model = tiny_classifier("bert", labels=4)
        with torch.no_grad():
            model.classifier.bias[3] = 99.0  # a class that came later
        probe = OldSetProbe.of(model, old, rows, CPU)
        assert probe.before.figures["accuracy"] > 0
        assert probe.read(model).figures["accuracy"] == 0

    def test_the_change_is_paired_and_its_interval_holds_it(self):
        before = Reading({}, np.array([True] * 90 + [False] * 10))
        after = Reading({}, np.array([True] * 80 + [False] * 15 + [True] * 5))
        lost, gained, (low, high) = paired_change(before, after)
        assert (lost, gained) == (10, 5)
        assert -0.2 < low < -0.05 < 0 < high < 0.05
        assert paired_change(Reading({}), after) is None
