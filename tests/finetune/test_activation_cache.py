"""Training from the cache is training; what the cache holds is what the model computes."""

import errno
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from made_up_rows import MadeUpRows
from tiny_models import tiny_classifier

from edgewright.finetune import activation_cache
from edgewright.finetune.activation_cache import ActivationCache, CachePlan, CacheUse, fill_cache
from edgewright.finetune.activation_store import ActivationStore
from edgewright.finetune.cut import Cut
from edgewright.finetune.evaluate import predict_logits
from edgewright.finetune.freeze import find_part, freeze
from edgewright.finetune.recipe import Recipe, Watcher
from edgewright.finetune.train import fit

CPU = torch.device("cpu")
BLOCKS = 2


def plan(root, **changes) -> CachePlan:
    return CachePlan(
        **{"root": root, "device": CPU, "precision": "fp32", "epochs": 5, "must": True, **changes}
    )


def frozen(kind: str = "bert"):
    model = tiny_classifier(kind)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    for module in model.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    rows = MadeUpRows(200)
    return model, freeze(model, BLOCKS, rows.inputs([0, 1])), rows


def fill(model, part, rows, chosen_plan, **told):
    cut = Cut.find(model, BLOCKS, rows.inputs(range(4)))
    return fill_cache({cut: part}, [rows], chosen_plan, **told)


def train(model, rows, epochs: int = 2):
    losses = []
    recipe = Recipe(epochs=epochs, lr=1e-3, batch_size=8)
    watcher = Watcher(on_step=lambda _epoch, _step, loss: losses.append(loss))
    fit(model, rows, recipe, CPU, validate=lambda: None, watcher=watcher)
    return losses


@pytest.mark.parametrize("kind", ["bert", "distilbert", "mpnet", "deberta-v2"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_fifty_steps_from_the_cache_are_fifty_live_steps(kind, tmp_path):
    live, _, rows = frozen(kind)
    losses = train(live, rows)
    assert len(losses) == 50
    model, part, _ = frozen(kind)
    (cache,) = fill(model, part, rows, plan(tmp_path, dtype="float32"))
    assert train(cache.model(), cache.rows(rows)) == pytest.approx(losses, rel=1e-4)
    for (name, one), other in zip(live.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, msg=name)


def test_frozen_weights_and_buffers_hash_equal_before_and_after(tmp_path):
    model, part, rows = frozen()
    tensors = [*part.parameters, *(b for module in part.modules for b in module.buffers())]

    def digest():
        return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).digest()

    before = digest()
    (cache,) = fill(model, part, rows, plan(tmp_path))
    train(cache.model(), cache.rows(rows))
    assert digest() == before


def test_half_precision_is_taken_where_it_keeps_the_answers(tmp_path):
    model, part, rows = frozen()
    (cache,) = fill(model, part, rows, plan(tmp_path))
    assert cache.use.dtype == "float16"
    exact = predict_logits(model, rows, CPU)
    cached = predict_logits(cache.model(), cache.rows(rows), CPU)
    assert 0 < np.abs(exact - cached).max() < 1e-2


def test_numbers_too_large_for_half_precision_are_stored_whole(tmp_path):
    model, part, rows = frozen()
    block = model.bert.encoder.layer[BLOCKS - 1]
    with torch.no_grad():
        block.output.LayerNorm.weight.mul_(1e6)
    (cache,) = fill(model, part, rows, plan(tmp_path))
    assert cache.use.dtype == "float32"


def test_a_second_run_finds_every_row_and_new_rows_are_appended(tmp_path):
    model, part, rows = frozen()
    computed = []
    fill(model, part, rows, plan(tmp_path), on_rows=computed.append)
    assert sum(computed) == len(set(rows.keys))
    computed.clear()
    (again,) = fill(model, part, rows, plan(tmp_path), on_rows=computed.append)
    assert (computed, again.use.filled) == ([], 0)
    more = MadeUpRows(30, seed=9)
    cut = Cut.find(model, BLOCKS, rows.inputs(range(4)))
    (grown,) = fill_cache({cut: part}, [rows, more], plan(tmp_path))
    new = len(set(more.keys) - set(rows.keys))
    assert (grown.use.found, grown.use.filled) == (len(set(rows.keys)), new)
    np.testing.assert_allclose(
        predict_logits(grown.model(), grown.rows(more), CPU),
        predict_logits(model, more, CPU),
        atol=1e-2,
    )


@pytest.mark.parametrize("what", ["weight", "blocks", "precision"])
def test_another_frozen_part_finds_nothing(tmp_path, what):
    model, part, rows = frozen()
    fill(model, part, rows, plan(tmp_path))
    blocks = BLOCKS
    if what == "weight":
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight[7, 3] += 1e-3
    if what == "blocks":
        model = tiny_classifier("bert")
        blocks = 1
        part = freeze(model, 1, rows.inputs([0]))
    precision = "bf16" if what == "precision" else "fp32"
    cut = Cut.find(model, blocks, rows.inputs(range(4)))
    (cache,) = fill_cache({cut: part}, [rows], plan(tmp_path, precision=precision))
    assert cache.use.found == 0


def test_weights_behind_the_cut_do_not_matter(tmp_path):
    model, part, rows = frozen()
    fill(model, part, rows, plan(tmp_path))
    train(model, rows, epochs=1)
    (cache,) = fill(model, part, rows, plan(tmp_path))
    assert cache.use.filled == 0


def test_several_cuts_are_filled_in_one_pass(tmp_path):
    model = tiny_classifier("bert")
    rows = MadeUpRows(60)
    cuts = {}
    for blocks in (1, 3):
        part = find_part(model, blocks, rows.inputs([0]))
        cuts[Cut.find(model, blocks, rows.inputs(range(4)))] = part
    computed = []
    caches = fill_cache(cuts, [rows], plan(tmp_path), on_rows=computed.append)
    assert sum(computed) == len(set(rows.keys))
    exact = predict_logits(model, rows, CPU)
    for cache in caches:
        cached = predict_logits(cache.model(), cache.rows(rows), CPU)
        np.testing.assert_allclose(cached, exact, atol=1e-2)


def test_a_cache_that_would_not_pay_is_not_filled_and_says_so(tmp_path):
    model, part, rows = frozen()
    use = fill(model, part, rows, plan(tmp_path, must=False, epochs=1))
    assert isinstance(use, CacheUse)
    assert not use.used
    assert use.reason.startswith("all epochs take ")
    assert not list(tmp_path.rglob("*.npy"))


def test_a_cache_that_is_there_is_used_whatever_it_would_cost_to_fill(tmp_path):
    model, part, rows = frozen()
    fill(model, part, rows, plan(tmp_path))
    assert isinstance(
        fill(model, part, rows, plan(tmp_path, must=False, epochs=1))[0], ActivationCache
    )


def test_a_disk_that_is_short_is_found_out_beforehand(tmp_path, monkeypatch):
    model, part, rows = frozen()
    free = activation_cache._SPARE_BYTES + 1000
    monkeypatch.setattr(
        activation_cache.shutil, "disk_usage", lambda _path: type("", (), {"free": free})
    )
    use = fill(model, part, rows, plan(tmp_path))
    assert not use.used
    assert "to spare" in use.reason
    assert not list(tmp_path.rglob("*.npy"))


def test_a_disk_that_fills_up_in_the_middle_ends_the_cache_and_not_the_run(tmp_path, monkeypatch):
    model, part, rows = frozen()

    def full(_self, _keys, _arrays):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ActivationStore, "append", full)
    use = fill(model, part, rows, plan(tmp_path))
    assert not use.used
    assert "No space left on device" in use.reason


def test_a_folder_that_cannot_be_made_is_a_reason(tmp_path):
    model, part, rows = frozen()
    (tmp_path / "file").write_text("")
    use = fill(model, part, rows, plan(tmp_path / "file" / "below"))
    assert not use.used
    assert "cannot be used" in use.reason


def test_a_damaged_shard_is_told_and_its_rows_are_computed_again(tmp_path):
    model, part, rows = frozen()
    (cache,) = fill(model, part, rows, plan(tmp_path))
    (file,) = cache.store.folder.glob("*.npy")
    content = bytearray(file.read_bytes())
    content[-9] ^= 64
    file.write_bytes(content)
    warnings = []
    (again,) = fill(model, part, rows, plan(tmp_path), warn=warnings.append)
    assert again.use.filled == len(set(rows.keys))
    assert "was damaged" in warnings[0]


def test_rows_that_the_model_would_not_give_are_not_used(tmp_path):
    model, part, rows = frozen()
    (cache,) = fill(model, part, rows, plan(tmp_path))
    wrong = {key: cache.store.read(key) + np.float16(1) for key in set(rows.keys)}
    identity = json.loads((cache.store.folder / "identity.json").read_bytes())
    shutil.rmtree(cache.store.folder)
    del identity["format"]
    ActivationStore(tmp_path, identity).append(list(wrong), wrong.values())
    use = fill(model, part, rows, plan(tmp_path))
    assert not use.used
    assert "holds other rows than the model computes" in use.reason


def test_memory_that_is_short_halves_the_batch_of_the_fill(tmp_path, monkeypatch):
    model, part, rows = frozen()
    forward = torch.nn.Embedding.forward
    sizes = []

    def limited(self, ids):
        if ids.dim() == 2 and len(ids) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(ids))
        return forward(self, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", limited)
    (cache,) = fill(model, part, rows, plan(tmp_path))
    assert max(sizes) <= 20
    assert cache.use.filled == len(set(rows.keys))


def test_what_is_there_in_full_precision_is_taken_though_half_would_do(tmp_path):
    model, part, rows = frozen()
    (exact,) = fill(model, part, rows, plan(tmp_path, dtype="float32"))
    (again,) = fill(model, part, rows, plan(tmp_path))
    assert (again.use.dtype, again.use.found) == ("float32", exact.use.filled)
