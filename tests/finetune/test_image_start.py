"""A new head of a network with batch normalisations starts from what training will show it."""

from __future__ import annotations

import contextlib
import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from tiny_vision import save_vision_folder
from torch import nn

from edgewright.finetune import depth
from edgewright.finetune.audit_task import start_from_probe, survey_task
from edgewright.finetune.batch_statistics import trained_normalisations
from edgewright.finetune.config import FinetuneConfig
from edgewright.finetune.feed import open_feed
from edgewright.finetune.head import find_head, start_head
from edgewright.finetune.survey import survey
from edgewright.finetune.task import Task
from edgewright.output import Output

QUIET = Output(quiet=True)


@pytest.fixture
def task(digits_folder, vision_folder, tmp_path):
    def prepare(**options: Any) -> Task:
        config = FinetuneConfig(
            data=str(digits_folder),
            model=str(vision_folder),
            threads=1,
            device="cpu",
            precision="fp32",
            audit="off",
            cache_dir=str(tmp_path / "cache"),
            **options,
        )
        return Task.prepare(config, QUIET)

    return prepare


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in model.named_buffers() if "running" in name}


def probed(task: Task) -> tuple[nn.Linear, nn.Linear]:
    """The head of the task's model, and one started from what it reads of the train rows now."""
    rows = task.rows["train"]
    head = find_head(task.model, task.probe_inputs(1))
    seen = survey(
        task.model, rows, task.device, head=head, encoder=None, precision=contextlib.nullcontext
    )
    other = deepcopy(head)
    start_head(other, seen.head_inputs, rows.labels, task.config.seed)
    return head, other


@pytest.mark.parametrize("cache", ["on", "off"])
@pytest.mark.parametrize("freeze", [0, 2])
def test_the_head_is_a_probe_of_what_the_statistics_of_the_train_rows_give(
    task, freeze, cache
) -> None:
    prepared = task(freeze=freeze, cache=cache)
    before = statistics(prepared.model)
    feed = open_feed(prepared, QUIET)
    start_from_probe(prepared, feed, survey_task(prepared, feed))
    after = statistics(prepared.model)
    training = set(map(id, trained_normalisations(prepared.model)))
    of = {
        f"{name}.{kind}": id(module)
        for name, module in prepared.model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for kind in ("running_mean", "running_var")
    }
    moved = {name for name, each in after.items() if not torch.equal(each, before[name])}
    assert moved == {name for name, owner in of.items() if owner in training}
    assert len(moved) < len(before) or freeze == 0
    head, expected = probed(prepared)
    torch.testing.assert_close(head.weight, expected.weight, rtol=0, atol=2e-4)


@pytest.mark.parametrize("cache", ["on", "off"])
def test_each_depth_starts_its_own_head_and_leaves_no_statistics(task, monkeypatch, cache) -> None:
    prepared, heads = task(freeze="auto", cache=cache), []
    before = statistics(prepared.model)
    head = find_head(prepared.model, prepared.probe_inputs(1))
    fit = depth.fit

    def spy(*args: Any, **options: Any) -> Any:
        heads.append(head.weight.detach().clone())
        return fit(*args, **options)

    monkeypatch.setattr(depth, "fit", spy)
    depth.choose_depth(prepared, QUIET)
    folds = depth.FOLDS
    assert len(heads) == 5 * folds
    firsts = heads[::folds]  # of the same rows
    assert not any(torch.equal(one, firsts[0]) for one in firsts[1:])
    for name, each in statistics(prepared.model).items():
        assert torch.equal(each, before[name]), name


def test_the_audit_and_the_forgetting_probe_read_what_pre_training_gave(
    finetune_images, tmp_path
) -> None:
    """The same whether a head is started, which changes what normalises."""
    found = []
    for option in ("--head-first", "--no-head-first"):
        run = finetune_images("--freeze", 0, option, out=option)
        assert run.code == 0, run.err
        audit, metrics = (
            json.loads((tmp_path / option / name).read_bytes())
            for name in ("audit.json", "metrics.json")
        )
        found.append((audit["features"], metrics["forgetting"]["before"]))
    assert found[0] == found[1]
    assert all(found[0])


@pytest.mark.parametrize(("kind", "lr"), [("resnet", 1e-3), ("vit", 2e-4)])
def test_where_all_trains_the_rate_goes_by_whether_batches_normalise(
    finetune_images, tmp_path, kind, lr
) -> None:
    model = save_vision_folder(tmp_path / kind, kind)
    run = finetune_images("--freeze", 0, "--forgetting", "off", "--json", model=model)
    assert run.json["lr"] == lr
