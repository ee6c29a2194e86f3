"""The deepest freeze that is as good as the best, found without leaving a trace in the model."""

import json

import numpy as np
import pytest
import torch
from tiny_models import make_rows, write_csv

from edgewright.errors import ConfigError
from edgewright.finetune import depth
from edgewright.finetune.activation_cache import CacheUse
from edgewright.finetune.config import FinetuneConfig
from edgewright.finetune.depth import choose_depth
from edgewright.finetune.task import Task
from edgewright.output import Output

QUIET = Output(quiet=True)


@pytest.fixture
def task(model_folder, data_file, tmp_path):
    def prepare(**changes) -> Task:
        options = {
            "data": str(data_file),
            "model": str(model_folder),
            "freeze": "auto",
            "threads": 1,
            "max_length": 32,
            "cache": "on",
            "cache_dir": str(tmp_path / "cache"),
            "lr": 1e-3,
        }
        return Task.prepare(FinetuneConfig(**(options | changes)), QUIET)

    return prepare


def test_the_model_is_left_as_it_was(task):
    prepared = task(head_first=False)
    before = {name: each.clone() for name, each in prepared.model.state_dict().items()}
    choose_depth(prepared, QUIET)
    for name, tensor in prepared.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, msg=name)
    assert all(each.requires_grad for each in prepared.model.parameters())
    assert prepared.model.train().bert.embeddings.training


def test_five_depths_compete_and_the_better_ones_on_more_rows(task, monkeypatch):
    monkeypatch.setattr(depth, "RUNGS", ((16, 3), (48, 1)))
    choice = choose_depth(task(), QUIET)
    assert [each.blocks for each in choice.candidates] == [0, 1, 2, 3, 4]
    assert sorted(len(each.tries) for each in choice.candidates) == [1, 1, 2, 2, 2]
    worst = sorted(choice.candidates, key=lambda each: each.tries[0].loss)[3:]
    assert all(len(each.tries) == 1 and each.behind is None for each in worst)
    assert {tuple(t.rows for t in each.tries) for each in choice.candidates} == {(16,), (16, 48)}


def test_no_depth_trains_twice_on_the_same_rows(task):
    choice = choose_depth(task(), QUIET)  # the first rung takes all the rows there are
    assert [len(each.tries) for each in choice.candidates] == [1] * 5
    assert sum(each.behind is not None for each in choice.candidates) == 3


def test_what_was_decided_on_its_caches_stays_and_what_is_decided_is_told(task, tmp_path):
    told = []
    choose_depth(task(), QUIET, CacheUse(False, "it was too slow"), told.append)
    assert not (tmp_path / "cache").exists()
    assert told == [CacheUse(False, "it was too slow")]
    choose_depth(task(), QUIET, None, told.append)
    assert [use.used for use in told] == [False, True]


def test_two_rows_cannot_tell_and_three_can(task, tmp_path):
    two = write_csv(tmp_path / "two.csv", make_rows(2))
    with pytest.raises(ConfigError, match=r"too few rows \(2\) .* as --freeze 2"):
        choose_depth(task(data=str(two)), QUIET)
    three = write_csv(tmp_path / "three.csv", make_rows(3))
    assert choose_depth(task(data=str(three)), QUIET).candidates[0].tries[0].n == 3


def test_few_rows_are_judged_in_folds_each_row_once(task):
    prepared = task()
    rows = sum(len(prepared.rows[name].labels) for name in ("train", "validation"))
    choice = choose_depth(prepared, QUIET)
    assert choice.folds == depth.FOLDS
    assert all(each.tries[0].n == rows for each in choice.candidates)


def test_many_rows_are_judged_on_validation(task, tmp_path):
    data = write_csv(tmp_path / "many.csv", make_rows(900))
    prepared = task(data=str(data))
    choice = choose_depth(prepared, QUIET)
    assert choice.folds == 1
    assert choice.candidates[0].tries[0].n == len(prepared.rows["validation"].labels)


@pytest.mark.parametrize(
    ("right", "chosen"),
    [
        ({0: 90, 2: 90, 4: 90}, 4),  # as good: the deepest
        ({0: 95, 2: 94, 4: 60}, 2),  # one row behind is within the error, 35 are not
        ({0: 60, 2: 95, 4: 70}, 2),
        ({0: 95, 2: 80, 4: 80}, 0),
    ],
)
def test_the_deepest_within_one_standard_error_of_the_best_is_chosen(
    task, monkeypatch, right, chosen
):
    monkeypatch.setattr(depth, "SHARES", (0.0, 0.5, 1.0))

    def run(self, blocks, rows):
        self.right[blocks] = np.arange(100) < right[blocks]
        judged = depth.Try(rows, 100, right[blocks] / 100, 1 - right[blocks] / 100)
        self.tries.setdefault(blocks, []).append(judged)

    monkeypatch.setattr(depth._Race, "run", run)
    monkeypatch.setattr(depth._Race, "has_more", lambda *_: True)
    assert choose_depth(task(), QUIET).blocks == chosen


def test_the_run_trains_at_the_depth_chosen_and_the_report_shows_the_table(finetune, tmp_path):
    run = finetune("--json", "--freeze", "auto", "--cache-dir", tmp_path / "cache")
    assert run.code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest["config"]["freeze"] == run.json["frozen"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_bytes())
    assert metrics["depth"]["blocks"] == run.json["frozen"]
    assert [each["blocks"] for each in metrics["depth"]["candidates"]] == [0, 1, 2, 3, 4]
    assert "Depth" in (tmp_path / "out" / "report.html").read_text()


def test_a_run_from_a_checkpoint_keeps_its_depth(finetune, tmp_path):
    assert finetune("--freeze", 3, "--quiet").code == 0
    again = finetune("--from", tmp_path / "out", "--json", model=None, data=None, out="again")
    assert again.json["frozen"] == 3
