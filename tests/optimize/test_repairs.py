"""Whole runs on a checkpoint whose one layer is poisoned for int8."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optimize_outcomes import int8_is_faster
from poisoned_models import poison_attention_output

from edgewright.bundle import Bundle
from edgewright.cli import run
from edgewright.optimize.bench import Bench
from edgewright.optimize.trials import trials_file

# A loaded machine must not run out of time.
LONG = ("--backend", "onnxruntime", "--mixed-seconds", "100000")
POISONED = "bert/encoder/layer.1/attention/output/dense"


@pytest.fixture(scope="module")
def poisoned(
    trained_model: Path,
    seal_model: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    from transformers import BertForSequenceClassification

    folder = tmp_path_factory.mktemp("poisoned")
    shutil.copytree(trained_model, folder / "trained")
    model = BertForSequenceClassification.from_pretrained(folder / "trained" / "model")
    poison_attention_output(model, 1)
    model.save_pretrained(folder / "trained" / "model")
    return seal_model(folder / "checkpoint", folder / "trained")


@pytest.fixture
def optimize(
    poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """A run with one's own ledger, in which int8 is as fast as a clock might have shown."""
    monkeypatch.setattr(Bench, "measure", int8_is_faster)

    def start(*options: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        ledger = ("--ledger", str(tmp_path / "ledger"))
        bundle = ("-o", str(tmp_path / "bundle"))
        code = run(["optimize", str(poisoned), *bundle, *ledger, "--json", *options])
        return code, json.loads(capsys.readouterr().out)

    return start


def test_a_poisoned_layer_is_found_kept_in_float_certified_and_shipped(
    optimize: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    code, told = optimize(*LONG)
    assert code == 0
    by_name = {each["name"]: each for each in told["candidates"]}
    failing, mixed = by_name["onnxruntime-int8-static"], by_name["onnxruntime-int8-static-mixed"]
    assert failing["search_lost"] - failing["search_won"] > 9
    assert mixed["search_lost"] - mixed["search_won"] <= 0
    assert (mixed["certificate"]["verdict"], mixed["shipped"]) == ("PASS", True)
    (search,) = told["mixed"]
    assert search["float_groups"] == [POISONED]
    assert (search["verified"], search["evaluations"]) == (True, 2)
    assert "mixed" in told["seconds_by_stage"]
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.variant("onnxruntime-int8-static-mixed").precision.startswith("int8-static-mixed")
    assert POISONED.removeprefix("bert/") in (tmp_path / "bundle" / "report.html").read_text()
    measured = json.loads((tmp_path / "bundle" / "measurements.json").read_bytes())
    assert measured["mixed"][0]["float_groups"] == [POISONED]


def test_trials_of_a_killed_run_are_used_and_removed_with_the_bundle(
    optimize: Callable[..., tuple[int, dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(BaseException):
        pass

    def kill(_bench: Bench) -> None:
        raise Killed

    trials = trials_file(tmp_path / "bundle")
    with monkeypatch.context() as context:
        context.setattr(Bench, "measure", kill)
        with pytest.raises(Killed):
            optimize(*LONG)
    assert trials.exists()

    def refuse(_bench: Bench, _candidate: object) -> None:
        raise AssertionError("tried again")

    once = Bench.scores_on_search

    def only_whole_candidates(bench: Bench, candidate: Any) -> Any:
        if candidate.name in bench.candidates:
            return once(bench, candidate)
        return refuse(bench, candidate)

    monkeypatch.setattr(Bench, "scores_on_search", only_whole_candidates)
    code, told = optimize(*LONG)
    assert code == 0
    assert told["mixed"][0]["evaluations"] == 2
    assert not trials.exists()


def test_without_seconds_nothing_is_searched(
    optimize: Callable[..., tuple[int, dict[str, Any]]], tmp_path: Path
) -> None:
    _, told = optimize("--backend", "onnxruntime", "--mixed-seconds", "0")
    assert told["mixed"] == []
    assert not any("mixed" in each["name"] for each in told["candidates"])
    assert not trials_file(tmp_path / "bundle").exists()
