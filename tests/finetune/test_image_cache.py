"""The cache of image models: trained from it as live, views and keys, nothing decoded again."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_data import digit_folder, digits
from tiny_vision import BLOCKS, SIDE, pictures, vision_model

from edgewright.examples import image_id
from edgewright.factories import Factory, FactoryClassifier
from edgewright.finetune import image_rows
from edgewright.finetune.activation_cache import CachePlan, fill_cache
from edgewright.finetune.augment import Augmentation
from edgewright.finetune.cut import Cut, Replayed, UncacheableError, record
from edgewright.finetune.evaluate import predict_logits
from edgewright.finetune.freeze import find_blocks, freeze
from edgewright.finetune.image_rows import ImageRows
from edgewright.finetune.recipe import Recipe, Watcher
from edgewright.finetune.train import fit
from edgewright.preprocess import ImagePreprocessor, ImageSettings
from edgewright.tables.image_folder import ImageFile

CPU = torch.device("cpu")
PREPROCESSOR = ImagePreprocessor(
    ImageSettings((SIDE, SIDE), (), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> ImageRows:
    """Digits 0, 1 and 2."""
    folder = tmp_path_factory.mktemp("digits")
    chosen = [row for row in range(240) if digits()[1][row] < 3]
    files = sorted(digit_folder(folder, chosen).rglob("*.png"))
    images = [ImageFile(path, path.name) for path in files]
    labels = np.array([int(path.parent.name) for path in files])
    return ImageRows(PREPROCESSOR, [image_id(each.read()) for each in images], images, labels)


@pytest.fixture
def chained(users_code):
    return FactoryClassifier.make(Factory("users_code", "chained"), ["a", "b", "c"], seed=0).eval()


def still(kind: str):
    """A model without dropout and stochastic depth, half of it frozen."""
    model = vision_model(kind)
    for module in model.modules():
        for name in ("p", "drop_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model, freeze(model, BLOCKS[kind] // 2, {"pixel_values": pictures(1)})


def cached(model, part, rows, root, **changes):
    plan = CachePlan(root, CPU, "fp32", 3, must=True, dtype="float32")
    inputs = {"pixel_values": pictures(4)}
    cut = Cut.find(model, part.blocks, inputs)
    (cache,) = fill_cache({cut: part}, [rows], replace(plan, **changes), views=rows.views)
    return cache


def train(model, rows, epochs: int = 3) -> list[float]:
    losses: list[float] = []
    watcher = Watcher(on_step=lambda _epoch, _step, loss: losses.append(loss))
    recipe = Recipe(epochs=epochs, lr=1e-3, batch_size=8)
    fit(model, rows, recipe, CPU, validate=lambda: None, watcher=watcher)
    return losses


def held(part) -> str:
    tensors = [*part.parameters, *(b for module in part.modules for b in module.buffers())]
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


@pytest.mark.parametrize("kind", BLOCKS)
def test_the_rest_of_each_family_answers_from_what_crossed_any_cut(kind: str) -> None:
    model, inputs = vision_model(kind), {"pixel_values": pictures(4)}
    with torch.no_grad():
        live = model(**inputs).logits
        for blocks in range(1, BLOCKS[kind] + 1):
            cut = Cut.find(model, blocks, inputs)
            (activations,) = record([cut], inputs)
            torch.testing.assert_close(Replayed(cut)(activations).logits, live, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["resnet", "vit", "convnext", "mobilenet_v2", "efficientnet"])
def test_training_from_the_cache_is_live_training(kind, rows, tmp_path) -> None:
    live, _ = still(kind)
    losses = train(live, rows)
    model, part = still(kind)
    cache = cached(model, part, rows, tmp_path)
    before = held(part)
    assert len(losses) >= 27
    assert train(cache.model(), cache.rows(rows)) == pytest.approx(losses, rel=1e-4)
    for (name, one), other in zip(live.state_dict().items(), model.state_dict().values(), strict=1):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, msg=name)
    assert held(part) == before


def test_a_users_module_trains_from_the_cache_as_live(chained, rows, tmp_path) -> None:
    inputs = {"pixel_values": pictures(2)}
    part = freeze(chained, 2, inputs)
    cache = cached(chained, part, rows, tmp_path)
    start = {name: each.clone() for name, each in chained.state_dict().items()}
    losses = train(cache.model(), cache.rows(rows))
    chained.load_state_dict(start)
    assert train(chained, rows) == pytest.approx(losses, rel=1e-4)
    held_names = [name for name in start if name.startswith(("module.stem", "module.blocks.1"))]
    for name in [*held_names, "module.place"]:
        assert torch.equal(chained.state_dict()[name], start[name])


@pytest.mark.usefixtures("users_code")
def test_a_module_that_reads_more_than_its_blocks_answer_runs_live() -> None:
    model = FactoryClassifier.make(Factory("users_code", "net"), ["a", "b"], seed=0)
    with pytest.raises(UncacheableError, match="needs more than their answer"):
        Cut.find(model, 1, {"pixel_values": pictures(4)})


def test_a_parameter_beside_the_modules_makes_another_cache(chained, rows, tmp_path) -> None:
    part = freeze(chained, 1, {"pixel_values": pictures(1)})
    filled = cached(chained, part, rows, tmp_path).use.filled
    assert cached(chained, part, rows, tmp_path).use.found == filled
    with torch.no_grad():
        chained.module.place[2] += 1
    assert cached(chained, part, rows, tmp_path).use.found == 0


def test_nothing_before_the_cut_runs_and_no_image_is_decoded(rows, tmp_path, monkeypatch) -> None:
    model, part = still("convnext")
    cache = cached(model, part, rows, tmp_path)
    assert part.blocks == 2
    monkeypatch.setattr(image_rows, "decode", lambda *_: pytest.fail("decoded"))
    rows._kept.clear()
    ran: list[torch.nn.Module] = []
    convolve = torch.nn.Conv2d._conv_forward

    def counted(layer, *arguments):
        ran.append(layer)
        return convolve(layer, *arguments)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", counted)
    predict_logits(cache.model(), cache.rows(rows), CPU)
    frozen = {each for module in part.modules for each in module.modules()}
    assert ran
    assert not frozen.intersection(ran)


def test_half_precision_and_means_of_places_and_tokens(rows, tmp_path) -> None:
    for kind in ("resnet", "vit"):
        model, part = still(kind)
        cache = cached(model, part, rows, tmp_path, dtype=None)
        assert cache.use.dtype == "float16"
        blocks = find_blocks(model)
        answers: list[torch.Tensor] = []
        blocks[part.blocks - 1].register_forward_hook(
            lambda _m, _a, y, kept=answers: kept.append(y if torch.is_tensor(y) else y[0])
        )
        with torch.no_grad():
            model(**rows.inputs(np.arange(3)))
        places = (2, 3) if kind == "resnet" else 1
        expected = answers[0].mean(dim=places).numpy()
        means = cache.rows(rows).means(np.arange(3))
        np.testing.assert_allclose(means, expected, atol=2e-3)


def test_keys_tell_file_preprocessing_view_and_recipe(rows) -> None:
    keys = set(rows.keys)
    assert len(keys) == len(rows.labels)
    other = ImagePreprocessor(ImageSettings((SIDE, SIDE), (), resample="box"))
    assert not keys & set(replace(rows, preprocessor=other).keys)
    changed = replace(rows, ids=[image_id(b"x"), *rows.ids[1:]])
    assert len(keys & set(changed.keys)) == len(keys) - 1
    seen = [keys]
    for name, seed in (("light", 0), ("flip", 0), ("light", 1)):
        augmented = replace(rows, augmentation=Augmentation(name, seed, 2))
        assert set(augmented.keys) == keys, "as served they are the same"
        seen += [set(view.keys) for view in augmented.views]
    assert len(seen) == 7
    assert len(set().union(*seen)) == 7 * len(keys)
    more = replace(rows, augmentation=Augmentation("light", 0, 5))
    assert set(more.views[1].keys) == seen[2], "another number of views keeps those there are"


def test_epochs_show_views_in_turn_and_the_first_ones_are_those_of_live_augmentation(rows) -> None:
    turns = replace(rows, augmentation=Augmentation("light", 3, 2))
    live = replace(rows, augmentation=Augmentation("light", 3))

    def shown(of: ImageRows, epoch: int) -> bytes:
        return of.for_epoch(epoch).inputs(np.arange(5))["pixel_values"].numpy().tobytes()

    assert [shown(turns, epoch) for epoch in (1, 2)] == [shown(live, epoch) for epoch in (1, 2)]
    assert shown(turns, 3) == shown(turns, 1)
    assert shown(live, 3) != shown(live, 1)
    plain = rows.inputs(np.arange(5))["pixel_values"]
    assert torch.equal(turns.inputs(np.arange(5))["pixel_values"], plain)
    assert shown(turns, 1) != plain.numpy().tobytes()


def test_training_on_cached_views_is_training_on_live_views(rows, tmp_path) -> None:
    augmented = replace(rows, augmentation=Augmentation("light", 0, 2))
    live, _ = still("resnet")
    losses = train(live, augmented)
    model, part = still("resnet")
    cache = cached(model, part, augmented, tmp_path)
    assert cache.use.filled == 3 * len(rows.labels)  # as served, and two views
    assert train(cache.model(), cache.rows(augmented)) == pytest.approx(losses, rel=1e-4)
    plain, _ = still("resnet")
    assert train(plain, rows) != pytest.approx(losses, rel=1e-2)
