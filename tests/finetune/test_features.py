"""Pooled features are the mean of the encoder's states over real tokens, whatever the batch."""

import numpy as np
import torch
from tiny_models import make_rows

from edgewright.finetune import features
from edgewright.finetune.batches import TokenRows
from edgewright.finetune.config import FinetuneConfig
from edgewright.finetune.features import RowSubset, pooled_features
from edgewright.finetune.start import Start


def tiny(model_folder, count):
    config = FinetuneConfig(data="rows.csv", model=str(model_folder))
    start = Start.of(config, quiet=True)
    model = start.load(["food", "sports", "tech"], seed=0)
    texts = [text for text, _ in make_rows(count)]
    return model, TokenRows.of(start.preprocessor(model, 32), texts, np.zeros(count, np.int64))


def test_they_are_the_mean_over_the_tokens_of_each_row_alone(model_folder):
    model, rows = tiny(model_folder, 40)
    model.train()  # dropout must be off all the same
    pooled = pooled_features(model, rows, torch.device("cpu"))
    assert (pooled.shape, pooled.dtype) == ((40, 32), np.float32)
    for row in (0, 7, 39):
        with torch.no_grad():
            states = model.bert(**rows.inputs(np.array([row]))).last_hidden_state
        assert np.allclose(pooled[row], states[0].mean(dim=0).numpy(), atol=1e-5)


def test_a_subset_gives_the_features_of_its_rows(model_folder):
    model, rows = tiny(model_folder, 40)
    whole = pooled_features(model, rows, torch.device("cpu"))
    chosen = np.array([3, 11, 30])
    some = pooled_features(model, RowSubset(rows, chosen), torch.device("cpu"))
    assert np.allclose(some, whole[chosen], atol=1e-5)
    assert RowSubset(rows, chosen).labels.shape == (3,)


def test_a_full_memory_halves_the_batch(model_folder, monkeypatch):
    model, rows = tiny(model_folder, 20)
    expected = pooled_features(model, rows, torch.device("cpu"))
    pool = features._pool

    def short(encoder, inputs, device):
        if len(inputs["input_ids"]) > 4:
            raise torch.OutOfMemoryError("full")
        return pool(encoder, inputs, device)

    monkeypatch.setattr(features, "_pool", short)
    assert np.allclose(pooled_features(model, rows, torch.device("cpu")), expected, atol=1e-5)
