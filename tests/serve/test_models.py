from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cgroups
import numpy as np
import pytest

from edgewright.backends import get_backend
from edgewright.backends.onnxruntime import OnnxRuntimeSession
from edgewright.bundle import Bundle, Verdict
from edgewright.errors import IntegrityError
from edgewright.proof import cgroup, host_record
from edgewright.repository import Repository
from edgewright.serve import opening
from edgewright.serve.host_choice import Choice, ChosenBy, HostOptions
from edgewright.serve.models import ServedModel, load_model

from .bundles import (
    LABELS,
    Recipe,
    make_bundle,
    other_variant,
    preprocessor,
    random_texts,
    seal_again,
)


def load(repository: Path, name: str = "news", **options: Any) -> ServedModel:
    return load_model(Repository(repository), name, 1, threads=None, max_batch=8, **options)


def test_scores_equal_the_sessions_own(repository: Path, bundle: Path) -> None:
    model, texts = load(repository), random_texts(20)
    session = get_backend("onnxruntime").load(bundle / "variants" / "fp32.onnx", threads=1)
    logits = session.run(preprocessor()(texts).arrays)["logits"].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.scores(model.encode(texts)), expected, atol=1e-6)
    assert model.labels == LABELS


def test_a_certificate_holds_where_runtime_and_instruction_set_are_its_own(
    repository: Path,
) -> None:
    assert load(repository).verdict is Verdict.PASS


def test_on_another_instruction_set_the_verdict_is_unverified(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = load(repository, host=HostOptions(isa="x86_64-another"))
    assert model.verdict is Verdict.UNVERIFIED
    assert "on x86_64-another" in caplog.text
    assert "UNVERIFIED" in caplog.text


@pytest.mark.parametrize(
    "recipe", [Recipe(runtime="onnxruntime 0.1"), Recipe(certificate=None)], ids=["runtime", "none"]
)
def test_without_a_certificate_for_this_runtime_it_is_unverified(
    publish: Callable[..., Path], recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(publish(news=recipe)).verdict is Verdict.UNVERIFIED
    assert "UNVERIFIED" in caplog.text


def test_goldens_that_come_out_otherwise_refuse_the_model(tmp_path: Path, bundle: Path) -> None:
    other = make_bundle(tmp_path / "other", Recipe(seed=1))
    path = tmp_path / "repository" / "news" / "1"
    make_bundle(path)
    # Sealed anew, so that only the goldens can tell.
    (path / "variants" / "fp32.onnx").write_bytes((other / "variants" / "fp32.onnx").read_bytes())
    seal_again(path)
    with pytest.raises(IntegrityError, match="golden 0 gets other scores than recorded"):
        load(tmp_path / "repository")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of every session of a model that is loaded from now on."""
    given: list[int] = []

    class Spy:
        def runtime(self) -> str:
            return get_backend("onnxruntime").runtime()

        def load_instances(self, path: Path, count: int, *, threads: int, options: Any) -> Any:
            given.extend([threads] * count)
            runtime = get_backend("onnxruntime")
            return runtime.load_instances(path, count, threads=threads, options=options)

    monkeypatch.setattr(opening, "get_backend", lambda _name: Spy())
    return given


@pytest.mark.parametrize(("certified", "asked", "used"), [(1, None, 1), (99, None, 2), (1, 2, 2)])
def test_threads_are_those_certified_within_this_hosts_cores(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened: list[int],
    certified: int,
    asked: int | None,
    used: int,
) -> None:
    monkeypatch.setattr(Bundle, "certified_threads", certified)
    monkeypatch.setattr(host_record, "available_cores", lambda: 2)
    load_model(Repository(repository), "news", 1, threads=asked, max_batch=8, instances=2)
    assert opened == [used] * 2


@pytest.mark.parametrize(
    ("cores", "threads", "instances"), [(1, 1, 1), (2, 1, 2), (2, 2, 1), (7, 2, 3), (64, 1, 8)]
)
def test_instances_fill_the_cores_that_this_process_may_use(
    repository: Path, monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, instances: int
) -> None:
    monkeypatch.setattr(opening, "available_cores", lambda: cores)
    model = load_model(Repository(repository), "news", 1, threads=threads, max_batch=8)
    assert model.instances == instances


@pytest.mark.parametrize("place", cgroups.PLACES)
@pytest.mark.parametrize(
    ("limit", "certified", "threads", "instances"),
    [(0.5, 2, 1, 1), (1.5, 2, 1, 1), (3.0, 1, 1, 3), (3.0, 2, 2, 1), (None, 2, 2, 4)],
)
def test_a_cgroup_limit_cuts_threads_and_instances(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    opened: list[int],
    place: str,
    limit: float | None,
    certified: int,
    threads: int,
    instances: int,
) -> None:
    cgroups.PLACES[place](tmp_path, limit)
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(Bundle, "certified_threads", certified)
    load_model(Repository(repository), "news", 1, threads=None, max_batch=8)
    assert opened == [threads] * instances


def test_every_instance_gives_the_same_scores(repository: Path) -> None:
    model = load(repository, instances=3)
    arrays = preprocessor()(random_texts(4)).arrays
    first, *others = [session.run(arrays)["logits"] for session in model.session.each]
    assert len(others) == 2
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize(
    ("text", "cost"),
    [("", 2), ("four", 3), ("a market rises", 5), ("東京東京", 6), ("a" * 1000, 16)],
)
def test_the_cost_of_a_text_is_about_its_tokens(repository: Path, text: str, cost: int) -> None:
    assert load(repository).cost(text) == cost


Runs = list[tuple[object, tuple[int, int]]]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """The session of every run from now on, and its rows and tokens."""
    runs: Runs = []
    plain = OnnxRuntimeSession.run

    def run(session: OnnxRuntimeSession, arrays: Any, outputs: Any = ()) -> Any:
        runs.append((session, arrays["input_ids"].shape))
        return plain(session, arrays, outputs)

    monkeypatch.setattr(OnnxRuntimeSession, "run", run)
    return runs


def test_every_instance_is_warm_before_the_first_answer(repository: Path, runs: Runs) -> None:
    model = load(repository, instances=2)
    for session in model.session.each:
        assert [each for each, _ in runs].count(session) >= 3


@pytest.mark.parametrize(
    ("batch_tokens", "rows"), [(None, 8), (8 * 8, 8), (8 * 8 - 1, 7), (8 * 2, 2), (1, 1)]
)
def test_no_more_rows_are_warmed_up_than_may_run_together(
    repository: Path, runs: Runs, batch_tokens: int | None, rows: int
) -> None:
    load(repository, batch_tokens=batch_tokens, instances=1)
    _goldens, *warm_up = [each for _, (each, _tokens) in runs]
    assert max(warm_up) == rows


def test_on_a_gpu_one_instance_copies_while_another_computes_whatever_the_cores() -> None:
    def choice(backend: str) -> Choice:
        variant = other_variant("any", backend=backend)
        return Choice(variant, ChosenBy.BUNDLE, 1, "x86_64-any")

    assert [opening._instances(choice("onnxruntime-cuda"), cores) for cores in (1, 64)] == [2, 2]
    assert opening._instances(choice("openvino")) == opening.instances_here(1)
