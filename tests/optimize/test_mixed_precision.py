"""From a failing int8 file to a mixed one: the layer that is poisoned goes back, and it alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixed_cases import Case, depthwise_case, operators, quantized_case
from poisoned_models import poison_attention_output

from edgewright.checkpoint import Checkpoint
from edgewright.optimize import mixed_precision
from edgewright.optimize.fewest import Ending
from edgewright.optimize.mixed_precision import Mixed, mix, ranking_batches
from edgewright.proof.certificate import PairedCounts

POISONED = {
    "text": "bert/encoder/layer.1/attention/output/dense",
    "image": "model/module/blocks/0/depthwise",
}


def poisoned_bert(trained: Path, folder: Path, seal: Callable[..., Path], *layers: int) -> Case:
    from transformers import BertForSequenceClassification

    shutil.copytree(trained, folder / "trained")
    model = BertForSequenceClassification.from_pretrained(folder / "trained" / "model")
    for layer in layers:
        poison_attention_output(model, layer)
    model.save_pretrained(folder / "trained" / "model")
    checkpoint = Checkpoint.open(seal(folder / "checkpoint", folder / "trained"))
    return quantized_case(checkpoint, folder)


@pytest.fixture(scope="module")
def text(trained_model, seal_model, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return poisoned_bert(trained_model, tmp_path_factory.mktemp("text"), seal_model, 1)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return depthwise_case(tmp_path_factory.mktemp("image"), poisoned_block=0)


@pytest.fixture(params=["text", "image"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(kind: str, request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(kind)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_poisoned_layer_goes_back_and_it_alone(
    case: Case, kind: str, backend: str, tmp_path: Path
) -> None:
    failing = case.failing(backend)
    assert case.count(failing.candidate).loss > 0.1
    mixed = mix(failing, case.repair(tmp_path))
    assert mixed.float_groups == (POISONED[kind],)
    assert mixed.search is not None
    assert mixed.search.is_verified
    assert mixed.search.ending is Ending.FOUND
    assert mixed.candidate is not None
    assert mixed.candidate.name == f"{backend}-int8-static-mixed"
    assert mixed.candidate.precision == "int8-static-mixed-7bit"
    assert case.count(mixed.candidate).loss <= 0.05
    assert mixed.ranking.groups[0].divergence > 100 * mixed.ranking.groups[1].divergence


def test_all_other_layers_stay_int8(case: Case, kind: str, tmp_path: Path) -> None:
    failing = case.failing()
    mixed = mix(failing, case.repair(tmp_path))
    assert mixed.candidate is not None
    before, after = operators(failing.candidate.file), operators(mixed.candidate.file)
    if kind == "text":
        assert after.count("MatMulIntegerToFloat") == before.count("MatMulIntegerToFloat") - 1 > 10
        assert after.count("MatMul") == before.count("MatMul") + 1
        assert after.count("QuantizeLinear") == before.count("QuantizeLinear") - 1
    else:  # its weight and its activation
        gone = before.count("DequantizeLinear") - after.count("DequantizeLinear")
        assert gone == 2 < after.count("DequantizeLinear")


def test_two_poisoned_layers_are_found_though_either_hides_the_other(
    trained_model: Path, seal_model: Callable[..., Path], tmp_path: Path
) -> None:
    case = poisoned_bert(trained_model, tmp_path, seal_model, 0, 1)
    mixed = mix(case.failing(), case.repair(tmp_path))
    assert set(mixed.float_groups) == {POISONED["text"], POISONED["text"].replace("r.1", "r.0")}


def test_the_same_inputs_give_the_same_ranking_and_the_same_bytes(
    case: Case, tmp_path: Path
) -> None:
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        mixed = mix(case.failing(), case.repair(tmp_path / name))
        assert mixed.candidate is not None
        found.append((mixed.ranking, mixed.search, mixed.candidate.file.read_bytes()))
    assert found[0] == found[1]


class Killed(BaseException):
    """The process ends."""


def killed_at(trial: int, case: Case) -> Callable[..., PairedCounts]:
    """Counts, and ends at the given trial before its outcome is known."""
    asked = []

    def count(candidate: Any) -> PairedCounts:
        asked.append(candidate)
        if len(asked) == trial:
            raise Killed
        return case.count(candidate)

    return count


@pytest.mark.parametrize("trial", [1, 2])
def test_a_run_that_was_killed_repeats_neither_the_ranking_nor_a_trial(
    text: Case, tmp_path: Path, trial: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = mix(text.failing(), text.repair(tmp_path, trials=tmp_path / "whole.trials.json"))
    assert len(whole.counts) == 2
    with pytest.raises(Killed):
        mix(text.failing(), text.repair(tmp_path, count=killed_at(trial, text)))

    def rank_again(*_: Any, **__: Any) -> None:
        raise AssertionError("ranked again")

    monkeypatch.setattr(mixed_precision, "rank_groups", rank_again)
    text.counted.clear()
    resumed = mix(text.failing(), text.repair(tmp_path))
    assert len(text.counted) == len(whole.counts) - (trial - 1)
    assert (resumed.ranking, resumed.search) == (whole.ranking, whole.search)
    assert resumed.counts == whole.counts


@pytest.mark.parametrize("changes", [{"data": "another"}, {"budget": 0.06}])
def test_trials_of_other_rows_or_rules_are_not_believed(
    text: Case, tmp_path: Path, changes: dict[str, Any]
) -> None:
    first = mix(text.failing(), text.repair(tmp_path))
    text.counted.clear()
    mix(text.failing(), text.repair(tmp_path, **changes))
    assert len(text.counted) == len(first.counts)


class Clock:
    """Moves only when a trial takes its time."""

    def __init__(self, case: Case, seconds: float) -> None:
        self.now, self._case, self._seconds = 0.0, case, seconds

    def __call__(self) -> float:
        return self.now

    def count(self, candidate: Any) -> PairedCounts:
        self.now += self._seconds
        return self._case.count(candidate)


def searched_on_time(case: Case, folder: Path, cap: float, trial: float) -> Mixed:
    clock = Clock(case, trial)
    return mix(
        case.failing(),
        case.repair(folder, seconds=cap, count=clock.count, clock=clock, budget=-1.0),
    )


def test_no_trial_begins_after_the_seconds_that_were_allowed(text: Case, tmp_path: Path) -> None:
    mixed = searched_on_time(text, tmp_path, cap=25, trial=10)
    assert mixed.search is not None
    assert mixed.search.ending is Ending.OUT_OF_TIME
    assert list(mixed.counts) == [1, 2, 4]
    assert (mixed.candidate, mixed.float_groups, mixed.seconds) == (None, (), 30)


def test_seconds_of_a_killed_run_count(text: Case, tmp_path: Path) -> None:
    searched_on_time(text, tmp_path, cap=25, trial=10)
    again = searched_on_time(text, tmp_path, cap=25, trial=10)
    assert list(again.counts) == [1, 2, 4]
    assert again.search is not None
    assert again.search.ending is Ending.OUT_OF_TIME


def test_a_budget_that_nothing_meets_ends_at_all_in_float(text: Case, tmp_path: Path) -> None:
    mixed = mix(text.failing(), text.repair(tmp_path, budget=-1.0))
    assert mixed.candidate is None
    assert mixed.search is not None
    assert mixed.search.ending is Ending.NONE_PASSES
    assert max(mixed.counts) == len(mixed.ranking.groups)
    assert mixed.counts[len(mixed.ranking.groups)].lost == 0


def test_rows_of_the_ranking_are_taken_from_all_over(text: Case) -> None:
    rows = text.calibrate * 3
    lengths = [batch["input_ids"].shape[0] for batch in ranking_batches(text.preprocessor, rows)]
    assert lengths == [4] * 8
    first = next(iter(ranking_batches(text.preprocessor, rows)))["input_ids"]
    last = list(ranking_batches(text.preprocessor, rows))[-1]["input_ids"]
    assert np.array_equal(first[0, : len(rows[0])], rows[0].input_ids)
    assert np.array_equal(last[-1, : len(rows[-1])], rows[-1].input_ids)
