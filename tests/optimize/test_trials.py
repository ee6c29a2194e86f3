"""The state of a search on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from edgewright.optimize import trials as on_disk
from edgewright.optimize.sensitivity import Ranking, Sensitivity
from edgewright.optimize.trials import Trials, trials_file
from edgewright.proof.certificate import PairedCounts

RANKING = Ranking((Sensitivity("a", math.inf), Sensitivity("b", 0.1 + 0.2)), rows=32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return trials_file(tmp_path / "bundle")


def opened(path: Path, fp32: str = "f", backend: str = "onnxruntime") -> Trials:
    return Trials.open(path, {"fp32": fp32}, {"backend": backend})


def saved(path: Path, fp32: str = "f", backend: str = "onnxruntime") -> Trials:
    trials = opened(path, fp32, backend)
    trials.counts[3] = PairedCounts(n=90, lost=2, won=1)
    trials.ranking, trials.seconds = RANKING, 1.25
    trials.save()
    return trials


def test_they_lie_beside_the_bundle(tmp_path: Path) -> None:
    assert trials_file(tmp_path / "my.bundle") == tmp_path / "my.bundle.trials.json"


def test_what_was_saved_is_read_back_to_the_bit(path: Path) -> None:
    fresh = opened(path)
    assert (fresh.counts, fresh.ranking, fresh.seconds) == ({}, None, 0.0)
    assert saved(path) == opened(path)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_what_was_counted_by_another_rule_is_counted_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(on_disk, "FORMAT_VERSION", 1)
        assert saved(path) == opened(path)
    assert opened(path).counts == {}


def test_another_search_has_trials_of_its_own(path: Path) -> None:
    first = saved(path)
    assert opened(path, fp32="g").counts == {}
    assert opened(path, fp32="g").ranking is None
    second = saved(path, fp32="g")
    assert opened(path) == first
    assert opened(path, fp32="g") == second


def test_another_runtime_has_the_same_ranking_and_counts_of_its_own(path: Path) -> None:
    saved(path)
    other = opened(path, backend="openvino")
    assert other.ranking == RANKING
    assert (other.counts, other.seconds) == ({}, 0.0)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b'"lost": 2', b'"lost": 0'),
        lambda content: content.replace(b'"format_version": 2', b'"format_version": 3'),
        lambda _: b"",
        lambda _: b"[]",
        lambda _: json.dumps({"searches": 3, "rankings": {}}).encode(),
    ],
)
def test_a_damaged_file_is_work_to_do_again(path: Path, damage) -> None:
    saved(path)
    assert damage(path.read_bytes()) != path.read_bytes()
    path.write_bytes(damage(path.read_bytes()))
    assert opened(path).counts == {}
    again = saved(path)
    assert opened(path) == again


def test_a_write_that_fails_leaves_the_trials_of_before(path: Path, monkeypatch) -> None:
    first = saved(path)

    def full(_descriptor: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("edgewright.manifest.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        saved(path, fp32="g")
    assert opened(path) == first
    assert [each.name for each in path.parent.iterdir()] == [path.name]
