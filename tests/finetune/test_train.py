"""The loop: which epoch is kept, what a step is, and what happens when things go wrong."""

import numpy as np
import pytest
import torch
import transformers
from made_up_rows import MadeUpRows
from tiny_models import bert_config

from edgewright.errors import ConfigError
from edgewright.finetune.evaluate import Scores
from edgewright.finetune.freeze import freeze
from edgewright.finetune.recipe import Recipe, Watcher, balanced_weights
from edgewright.finetune.train import fit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows():
    return MadeUpRows()


@pytest.fixture
def model():
    return make_model()


def make_model(dropout: float = 0.0):
    torch.manual_seed(0)
    config = bert_config(
        2, num_labels=3, hidden_dropout_prob=dropout, attention_probs_dropout_prob=0.0
    )
    return transformers.BertForSequenceClassification(config)


def recipe(**changes) -> Recipe:
    return Recipe(**{"epochs": 1, "lr": 1e-3, "batch_size": 8, **changes})


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one, other, **tolerance):
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], msg=name, **(tolerance or {"rtol": 0, "atol": 0})
        )


def told(**values) -> Scores:
    return Scores(
        **{"n": 10, "correct": 5, "loss": 1.0, "accuracy": 0.5, "macro_f1": 0.5, **values}
    )


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("accuracy", [0.5, 0.9, 0.7, 0.8], 2),
        ("macro_f1", [0.5, 0.6, 0.9, 0.8], 3),
        ("loss", [0.9, 0.2, 0.4, 0.3], 2),
        ("accuracy", [0.9, 0.9, 0.9, 0.9], 1),
    ],
)
def test_the_best_epoch_by_the_metric_is_restored(model, rows, metric, values, best):
    answers, kept = iter(values), []
    watcher = Watcher(on_epoch=lambda _epoch: kept.append(weights(model)))
    outcome = fit(
        model, rows, recipe(epochs=4, metric=metric, patience=9), CPU,
        validate=lambda: told(**{metric: next(answers)}), watcher=watcher,
    )  # fmt: skip
    assert (outcome.best.number, len(outcome.epochs), outcome.stopped_early) == (best, 4, False)
    assert_same(weights(model), kept[best - 1])
    assert not torch.equal(kept[0]["classifier.weight"], kept[1]["classifier.weight"])


def test_training_stops_after_patience_epochs_without_a_better_one(model, rows):
    answers = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    outcome = fit(
        model,
        rows,
        recipe(epochs=5, patience=2),
        CPU,
        validate=lambda: told(accuracy=next(answers)),
    )
    assert (outcome.best.number, len(outcome.epochs), outcome.stopped_early) == (2, 4, True)


def test_without_validation_rows_every_epoch_runs_and_the_last_is_kept(model, rows):
    kept = []
    outcome = fit(
        model, rows, recipe(epochs=3, patience=1), CPU, validate=lambda: None,
        watcher=Watcher(on_epoch=lambda _epoch: kept.append(weights(model))),
    )  # fmt: skip
    assert (outcome.best.number, outcome.stopped_early) == (3, False)
    assert_same(weights(model), kept[2])


def test_the_frozen_part_is_the_same_after_training_and_the_rest_is_not(model, rows):
    before = weights(model)
    freeze(model, 1, rows.inputs(np.arange(2)))
    fit(model, rows, recipe(weight_decay=0.5), CPU, validate=lambda: None)
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if "embeddings" in name or "layer.0." in name]
    assert {name.split(".")[0] for name in changed} == {"bert", "classifier"}


@pytest.mark.parametrize("class_weights", [None, (1.0, 2.0, 7.0)])
def test_accumulated_passes_equal_one_of_all_their_rows(rows, class_weights):
    large, small = make_model(), make_model()
    fit(large, rows, recipe(batch_size=20, class_weights=class_weights), CPU, validate=lambda: None)
    fit(
        small, rows, recipe(batch_size=5, accumulate=4, class_weights=class_weights), CPU,
        validate=lambda: None,
    )  # fmt: skip
    assert_same(weights(large), weights(small), rtol=1e-3, atol=2e-5)


def test_the_loss_of_a_step_is_the_weighted_mean_over_its_rows(model, rows):
    class_weights = (1.0, 2.0, 7.0)
    every = np.arange(len(rows.labels))
    logits = model(**rows.inputs(every)).logits
    expected = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(rows.labels), weight=torch.tensor(class_weights)
    )
    outcome = fit(
        model, rows, recipe(batch_size=7, accumulate=8, class_weights=class_weights), CPU,
        validate=lambda: None,
    )  # fmt: skip
    assert outcome.epochs[0].train_loss == pytest.approx(expected.item(), rel=1e-4)


def test_class_weights_change_what_is_learnt(rows):
    plain, weighted = make_model(), make_model()
    fit(plain, rows, recipe(), CPU, validate=lambda: None)
    balanced = balanced_weights(rows.labels, 3)
    fit(weighted, rows, recipe(class_weights=balanced), CPU, validate=lambda: None)
    assert not torch.equal(plain.classifier.weight, weighted.classifier.weight)


def test_balanced_weights_give_each_class_the_same_sum():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    shares = np.bincount(labels) * np.array(balanced_weights(labels, 3))
    np.testing.assert_allclose(shares, [10 / 3] * 3)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"),
]


def with_little_memory(model, most_rows: int, error: RuntimeError):
    """The model refuses more rows than fit, as an allocator would."""
    forward = model.forward

    def limited(input_ids, attention_mask):
        if len(input_ids) > most_rows:
            raise error
        return forward(input_ids=input_ids, attention_mask=attention_mask)

    model.forward = limited
    return model


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_batch_says_so_and_learns_the_same(rows, error):
    roomy, tight = make_model(), with_little_memory(make_model(), 5, error)
    warnings = []
    fit(roomy, rows, recipe(batch_size=16), CPU, validate=lambda: None)
    outcome = fit(
        tight, rows, recipe(batch_size=16), CPU, validate=lambda: None,
        watcher=Watcher(on_warning=warnings.append),
    )  # fmt: skip
    assert outcome.batch_size == 4
    assert len(warnings) == 2
    assert "16 rows is halved to 8, 2 of them to a step" in warnings[0]
    assert "8 rows is halved to 4, 4 of them to a step" in warnings[1]
    assert_same(weights(roomy), weights(tight), rtol=1e-3, atol=2e-5)


def test_a_row_that_does_not_fit_alone_is_an_error_with_the_way_out(rows):
    model = with_little_memory(make_model(), 0, OUT_OF_MEMORY[0])
    with pytest.raises(ConfigError, match=r"one row; lower --max-length"):
        fit(model, rows, recipe(), CPU, validate=lambda: None)


def test_other_runtime_errors_are_not_taken_for_a_full_memory(rows):
    model = with_little_memory(make_model(), 0, RuntimeError("mat1 and mat2 shapes"))
    with pytest.raises(RuntimeError, match="mat1"):
        fit(model, rows, recipe(), CPU, validate=lambda: None)


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"clip_norm": 1.0}, "a --lr below"),
        ({"clip_norm": 0.0}, "a --lr below"),
        ({"precision": "fp16"}, "--precision fp32 or a --lr below"),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(model, rows, changes, cure):
    with pytest.raises(ConfigError, match=rf"training diverged: .*try {cure} 1e\+30"):
        fit(model, rows, recipe(lr=1e30, epochs=3, **changes), CPU, validate=lambda: None)


def test_a_validation_loss_that_is_not_finite_stops_the_run(model, rows):
    with pytest.raises(ConfigError, match="validation loss became nan in epoch 1"):
        fit(model, rows, recipe(), CPU, validate=lambda: told(loss=float("nan")))


@pytest.mark.parametrize(("clip_norm", "clipped"), [(1e-3, True), (0.0, False)])
def test_gradients_are_clipped_together_unless_switched_off(model, rows, clip_norm, clipped):
    fit(model, rows, recipe(clip_norm=clip_norm), CPU, validate=lambda: None)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()]))
    assert (norm.item() <= 1.001e-3) == clipped


def gradient(model) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_a_step_starts_from_no_gradient(rows):
    once, thrice = make_model(), make_model()
    whole = {"batch_size": 40, "lr": 1e-12}  # one step is an epoch, and moves nothing
    fit(once, rows, recipe(epochs=1, **whole), CPU, validate=lambda: None)
    fit(thrice, rows, recipe(epochs=3, **whole), CPU, validate=lambda: None)
    torch.testing.assert_close(gradient(once), gradient(thrice), rtol=1e-3, atol=1e-6)


def test_a_scaled_gradient_is_unscaled_before_it_is_clipped(rows):
    full, half = make_model(), make_model()
    changes = {"batch_size": 40, "lr": 1e-12, "clip_norm": 100.0}  # clips only what is scaled
    fit(full, rows, recipe(**changes), CPU, validate=lambda: None)
    fit(half, rows, recipe(precision="fp16", **changes), CPU, validate=lambda: None)
    assert gradient(half).norm().item() == pytest.approx(gradient(full).norm().item(), rel=0.02)


def test_each_step_is_taken_at_the_rate_of_the_schedule(model, rows):
    seen = [model.classifier.weight.detach().clone()]
    watcher = Watcher(on_step=lambda *_: seen.append(model.classifier.weight.detach().clone()))
    rising = recipe(lr=1e-3, warmup=1.0, weight_decay=0.0)  # five steps
    fit(model, rows, rising, CPU, validate=lambda: None, watcher=watcher)
    # Adam's first step is the rate in every direction.
    assert (seen[1] - seen[0]).abs().max().item() == pytest.approx(0.2e-3, rel=0.01)
    assert (seen[5] - seen[4]).abs().max().item() > 0.5e-3


def test_the_same_seed_gives_the_same_weights_and_another_other_ones(rows):
    def trained(seed):
        model = make_model(dropout=0.2)
        fit(model, rows, recipe(seed=seed), CPU, validate=lambda: None)
        return weights(model)

    one, again, other = trained(1), trained(1), trained(2)
    assert_same(one, again)
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_an_epoch_does_not_depend_on_draws_made_between_epochs(rows):
    def trained(draws):
        model = make_model(dropout=0.2)
        fit(model, rows, recipe(epochs=2), CPU, validate=lambda: torch.rand(draws) and None)
        return weights(model)

    assert_same(trained(1), trained(1))
    one = make_model(dropout=0.2)
    fit(one, rows, recipe(epochs=2), CPU, validate=lambda: None)
    assert_same(weights(one), trained(1))


def test_training_leaves_the_global_generator_as_it_was(model, rows):
    before = torch.get_rng_state()
    fit(model, rows, recipe(), CPU, validate=lambda: None)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_learns(rows):
    model = make_model()
    outcome = fit(model, rows, recipe(epochs=12, lr=3e-3), CPU, validate=lambda: None)
    assert outcome.epochs[-1].train_loss < 0.5 * outcome.epochs[0].train_loss


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_in_it_and_keeps_fp32_weights(rows, precision):
    seen = set()
    model = make_model()
    model.classifier.register_forward_hook(lambda _m, _i, logits: seen.add(logits.dtype))
    outcome = fit(
        model, rows, recipe(epochs=12, lr=3e-3, precision=precision), CPU, validate=lambda: None
    )
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert outcome.epochs[-1].train_loss < 0.5 * outcome.epochs[0].train_loss


def test_every_step_and_epoch_is_told(model, rows):
    steps, epochs = [], []
    watcher = Watcher(
        lambda epoch, step, _loss: steps.append((epoch, step)),
        lambda epoch: epochs.append(epoch.number),
    )
    fit(model, rows, recipe(epochs=2, batch_size=9), CPU, validate=lambda: None, watcher=watcher)
    assert steps == [(epoch, step) for epoch in (1, 2) for step in range(1, 6)]
    assert epochs == [1, 2]
