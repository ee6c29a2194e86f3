"""Which variant answers: optimize's choice, its stand-in, or the one that this host chose."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgewright import backends
from edgewright.bundle import Bundle, Verdict
from edgewright.errors import BackendUnavailableError, IntegrityError
from edgewright.latency import Latency, Timing
from edgewright.manifest import canonical_json, sha256_bytes
from edgewright.proof import host_trial
from edgewright.proof.host_record import (
    HostKey,
    Speed,
    VariantHere,
    write_record,
)
from edgewright.proof.host_trial import conclude, try_variants, workload_here
from edgewright.repository import Repository
from edgewright.serve import host_choice
from edgewright.serve.background import Background
from edgewright.serve.host_choice import ChosenBy, HostOptions, Remeasure, choose, choose_variant
from edgewright.serve.models import ServedModel, load_model
from edgewright.state_dir import StateDir
from edgewright.v1.model_pb2 import (
    CHOICE_SOURCE_HOST,
    VERDICT_UNVERIFIED,
    VERDICT_VERIFIED,
    GetModelRequest,
)

from .bundles import Recipe, make_bundle, other_variant
from .conftest import Launch, until

ELSEWHERE = "x86_64-elsewhere"
FP32, FAST, SLOW = "onnxruntime-fp32", "onnxruntime-fast", "onnxruntime-slow"
# Certified elsewhere, as a bundle that was optimised on another host.
RECIPE = Recipe(isa=ELSEWHERE, chosen=SLOW, extra=(other_variant(FAST), other_variant(SLOW)))
SPEEDS = {FP32: 1.0, FAST: 3.0, SLOW: 2.0}


def timing(speedup: float) -> Timing:
    latency = Latency(1 / speedup, None, None, 9)
    return Timing({"1x4": latency}, 1 / speedup, speedup, 0.95 * speedup, 1.05 * speedup)


def speed(speedup: float) -> Speed:
    return Speed({"1x4": 1 / speedup}, 1 / speedup, speedup, (0.95 * speedup, 1.05 * speedup))


class Stopwatch:
    """Takes the place of timing: every variant has the speed that ``speeds`` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.speeds: Mapping[str, float] = SPEEDS
        self.timed: list[list[str]] = []
        monkeypatch.setattr(host_trial, "compare", self)

    def __call__(self, runs: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Timing]:
        self.timed.append(list(runs))
        return {name: timing(self.speeds[name]) for name in runs}


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    return Stopwatch(monkeypatch)


@pytest.fixture
def bundle_elsewhere(tmp_path: Path) -> Bundle:
    return Bundle.open(make_bundle(tmp_path / "bundle", RECIPE))


@pytest.fixture
def options(tmp_path: Path) -> HostOptions:
    return HostOptions(state_dir=tmp_path / "state")


def load(
    repository: Path, options: HostOptions, background: Background | None = None
) -> ServedModel:
    where = Repository(repository)
    return load_model(
        where, "news", 1, threads=None, max_batch=8, host=options, background=background
    )


def test_on_another_instruction_set_the_fastest_here_is_chosen_and_stays_unverified(
    publish: Callable[..., Path], stopwatch: Stopwatch, options: HostOptions
) -> None:
    model = load(publish(news=RECIPE), options)
    assert stopwatch.timed == [[FP32, FAST, SLOW]]
    assert (model.variant.name, model.chosen_by) == (FAST, ChosenBy.HOST)
    assert model.bundle.chosen.name == SLOW
    assert model.verdict is Verdict.UNVERIFIED


def test_a_variant_that_crashes_its_runtime_ends_another_process_and_does_not_serve(
    publish: Callable[..., Path],
    stopwatch: Stopwatch,
    options: HostOptions,
    background: Background,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crash = partial(eval, "__import__('os').kill(__import__('os').getpid(), 11)")
    monkeypatch.setattr(
        host_trial,
        "partial",
        lambda work, *of: crash if of[1].name == FAST else partial(work, *of),
    )
    model = load(publish(news=RECIPE), options, background)
    assert stopwatch.timed == [[FP32, SLOW]]
    assert model.variant.name == SLOW


def test_no_other_process_loads_what_takes_a_gpu(bundle_elsewhere: Bundle) -> None:
    def refuse(_work: object) -> None:
        raise IntegrityError("a GPU has no room for it twice")

    gpu = replace(bundle_elsewhere, variants=tuple(
        replace(each, backend="onnxruntime-cuda") for each in bundle_elsewhere.variants
    ))  # fmt: skip
    host = HostKey.here(bundle_elsewhere, 1)
    workload = workload_here(bundle_elsewhere)
    with pytest.raises(IntegrityError, match="no variant") as told:
        try_variants(gpu, host, workload, limit_s=1, apart=refuse)
    assert "no room" not in str(told.value)
    with pytest.raises(IntegrityError, match="no room"):
        try_variants(bundle_elsewhere, host, workload, limit_s=1, apart=refuse)


def test_with_another_runtime_it_is_measured_too(
    tmp_path: Path, stopwatch: Stopwatch, options: HostOptions
) -> None:
    bundle = Bundle.open(make_bundle(tmp_path / "bundle", Recipe(runtime="onnxruntime 0.1")))
    assert choose(bundle, None, options).by is ChosenBy.HOST
    assert len(stopwatch.timed) == 1


def test_what_rows_proved_on_this_host_is_served_as_verified_with_their_figures(
    publish: Callable[..., Path], launch: Launch, tmp_path: Path, stopwatch: Stopwatch
) -> None:
    repository = publish(news=RECIPE)
    bundle = Bundle.open(repository / "news" / "1")
    state, host = StateDir.at(tmp_path / "state"), HostKey.here(bundle, None)
    record = try_variants(bundle, host, workload_here(bundle), limit_s=1)
    certificate = bundle.chosen.certificate
    assert certificate is not None
    proven = replace(certificate, verdict=Verdict.VERIFIED, n=700, loss_upper_bound=0.004)
    variants = [
        each.with_recount(proven if each.name == SLOW else None) for each in record.variants
    ]
    write_record(state, conclude(bundle, host, record.workload, variants))
    running = launch(repository, state_dir=state.path)
    model = running.models.GetModel(GetModelRequest()).model
    assert (model.variant, model.choice_source) == (SLOW, CHOICE_SOURCE_HOST)
    assert model.certificate.verdict == VERDICT_VERIFIED
    assert (model.certificate.rows, model.certificate.loss_upper_bound) == (700, 0.004)


def test_the_second_start_measures_nothing(
    bundle_elsewhere: Bundle, stopwatch: Stopwatch, options: HostOptions
) -> None:
    first = choose(bundle_elsewhere, None, options)
    assert choose(bundle_elsewhere, None, options) == first
    assert len(stopwatch.timed) == 1


def test_of_several_processes_one_measures_and_the_others_wait_for_its_record(
    bundle_elsewhere: Bundle,
    options: HostOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    measuring, may_go_on = threading.Event(), threading.Event()
    timed = []

    def held(runs: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Timing]:
        timed.append(list(runs))
        measuring.set()
        assert may_go_on.wait(30)
        return {name: timing(SPEEDS[name]) for name in runs}

    monkeypatch.setattr(host_trial, "compare", held)
    results = StateDir.at(options.state_dir).of(bundle_elsewhere.artifact.manifest_sha256)
    with ThreadPoolExecutor() as pool:  # a lock of a file holds between threads as well
        first = pool.submit(choose, bundle_elsewhere, None, options)
        assert measuring.wait(30)
        second = pool.submit(choose, bundle_elsewhere, None, options)
        until(lambda: "waiting for another process here" in caplog.text)
        assert not results.exists()
        may_go_on.set()
        assert first.result() == second.result()
    assert len(timed) == 1


def test_another_number_of_threads_is_measured_for_itself(
    bundle_elsewhere: Bundle, stopwatch: Stopwatch, options: HostOptions
) -> None:
    choose(bundle_elsewhere, 1, options)
    choose(bundle_elsewhere, 2, options)
    assert len(stopwatch.timed) == 2


def test_on_the_certified_host_nothing_is_measured_or_written(
    bundle: Path, stopwatch: Stopwatch, options: HostOptions
) -> None:
    choice = choose(Bundle.open(bundle), None, options)
    assert (choice.by, choice.variant.name) == (ChosenBy.BUNDLE, FP32)
    assert stopwatch.timed == []
    assert options.state_dir is not None
    assert not options.state_dir.exists()


def test_on_the_certified_host_a_record_that_tune_left_is_followed(
    tmp_path: Path, stopwatch: Stopwatch, options: HostOptions
) -> None:
    bundle = Bundle.open(make_bundle(tmp_path / "bundle", Recipe(extra=(other_variant(FAST),))))
    host = HostKey.here(bundle, None)
    write_record(
        StateDir.at(options.state_dir),
        conclude(bundle, host, "1x4", [VariantHere(FAST, Verdict.UNVERIFIED, speed(3.0))]),
    )
    for remeasure in (Remeasure.AUTO, Remeasure.NEVER):
        choice = choose(bundle, None, replace(options, remeasure=remeasure))
        assert (choice.by, choice.variant.name) == (ChosenBy.HOST, FAST)
    assert stopwatch.timed == []


def test_never_leaves_optimizes_choice_and_always_measures(
    bundle: Path, bundle_elsewhere: Bundle, stopwatch: Stopwatch, tmp_path: Path
) -> None:
    never = HostOptions(tmp_path / "state", Remeasure.NEVER)
    assert choose(bundle_elsewhere, None, never).variant.name == SLOW
    always = HostOptions(tmp_path / "state", Remeasure.ALWAYS)
    for _ in range(2):
        assert choose(Bundle.open(bundle), None, always).by is ChosenBy.HOST
    assert len(stopwatch.timed) == 2


def test_a_variant_that_fails_its_goldens_here_is_not_served(
    tmp_path: Path, stopwatch: Stopwatch, options: HostOptions, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe(isa=ELSEWHERE, chosen=FAST, extra=RECIPE.extra, wrong_goldens=(FAST,))
    bundle = Bundle.open(make_bundle(tmp_path / "bundle", recipe))
    with caplog.at_level(logging.WARNING):
        assert choose(bundle, None, options).variant.name == SLOW
    assert stopwatch.timed == [[FP32, SLOW]]
    assert f"{FAST} does not serve on this host" in caplog.text
    assert "golden 0 gets other scores" in caplog.text


def test_where_every_variant_fails_its_goldens_nothing_is_served(
    tmp_path: Path, options: HostOptions
) -> None:
    bundle = make_bundle(tmp_path / "bundle", Recipe(isa=ELSEWHERE, wrong_goldens=(FP32,)))
    with pytest.raises(IntegrityError, match="no variant that can serve on this host.*golden 0"):
        choose(Bundle.open(bundle), None, options)


def test_where_nothing_is_faster_fp32_answers(
    bundle_elsewhere: Bundle, stopwatch: Stopwatch, options: HostOptions
) -> None:
    stopwatch.speeds = {FP32: 1.0, FAST: 1.02, SLOW: 0.7}  # 1.02 is within the noise
    assert choose(bundle_elsewhere, None, options).variant.name == FP32


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.REUSED, None])
def test_what_optimize_did_not_prove_is_never_a_candidate(
    tmp_path: Path, stopwatch: Stopwatch, options: HostOptions, verdict: Verdict | None
) -> None:
    extra = (other_variant(FAST, verdict), other_variant(SLOW))
    recipe = Recipe(isa=ELSEWHERE, chosen=SLOW, extra=extra)
    assert (
        choose(Bundle.open(make_bundle(tmp_path / "bundle", recipe)), None, options).variant.name
        == SLOW
    )
    assert stopwatch.timed == [[FP32, SLOW]]


def test_what_is_proven_here_goes_before_what_is_not(
    tmp_path: Path, stopwatch: Stopwatch, options: HostOptions
) -> None:
    """A runtime of the bundle has another version here; the others' certificates hold."""
    plain = Bundle.open(make_bundle(tmp_path / "plain")).chosen.certificate
    proven = replace(other_variant(SLOW), certificate=plain)
    recipe = Recipe(isa=ELSEWHERE, chosen=FAST, extra=(other_variant(FAST), proven))
    bundle = Bundle.open(make_bundle(tmp_path / "bundle", recipe))
    assert choose(bundle, None, options).variant.name == SLOW


def damaged(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def altered(file: Path) -> None:
    """The choice, and with it the checksum, no longer fit."""
    file.write_text(file.read_text().replace(f'"chosen": "{FAST}"', f'"chosen": "{SLOW}"'))


def of_another_format(file: Path) -> None:
    result = {**json.loads(file.read_bytes())["result"], "format_version": 99}
    checksum = sha256_bytes(canonical_json(result))
    file.write_bytes(canonical_json({"result": result, "checksum": checksum}))


def not_even_json(file: Path) -> None:
    file.write_bytes(b"\xff\x00")


@pytest.mark.parametrize("spoil", [damaged, altered, of_another_format, not_even_json])
def test_a_record_that_cannot_be_used_is_left_aside_with_a_warning(
    bundle_elsewhere: Bundle,
    stopwatch: Stopwatch,
    options: HostOptions,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
) -> None:
    choose(bundle_elsewhere, None, options)
    file = record_of(bundle_elsewhere, options)
    spoil(file)
    with caplog.at_level(logging.WARNING):
        assert choose(bundle_elsewhere, None, options).variant.name == FAST
    assert f"what this host measured of {bundle_elsewhere.path} is left aside" in caplog.text
    assert len(stopwatch.timed) == 2
    caplog.clear()
    choose(bundle_elsewhere, None, options)  # it was written anew
    assert len(stopwatch.timed) == 2


def record_of(bundle: Bundle, options: HostOptions) -> Path:
    host = HostKey.here(bundle, None, options.isa)
    folder = StateDir.at(options.state_dir).of(bundle.artifact.manifest_sha256)
    return folder / f"{host.record_name}.json"


def test_a_record_that_was_copied_from_another_host_or_bundle_is_left_aside(
    bundle_elsewhere: Bundle,
    tmp_path: Path,
    stopwatch: Stopwatch,
    options: HostOptions,
    caplog: pytest.LogCaptureFixture,
) -> None:
    choose(bundle_elsewhere, None, options)
    record = record_of(bundle_elsewhere, options).read_bytes()
    other_host = HostOptions(options.state_dir, isa="x86_64-third")
    other_bundle = Bundle.open(make_bundle(tmp_path / "other", Recipe(isa=ELSEWHERE, seed=1)))
    for bundle, host, said in (
        (bundle_elsewhere, other_host, "of another host"),
        (other_bundle, options, "of another bundle"),
    ):
        file = record_of(bundle, host)
        file.parent.mkdir(parents=True)
        file.write_bytes(record)
        with caplog.at_level(logging.WARNING):
            choose(bundle, None, host)
        assert said in caplog.text


def test_a_state_folder_that_cannot_be_written_is_a_warning(
    bundle_elsewhere: Bundle,
    tmp_path: Path,
    stopwatch: Stopwatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        choice = choose(bundle_elsewhere, None, HostOptions(tmp_path / "file" / "state"))
    assert choice.variant.name == FAST
    assert "cannot be written" in caplog.text
    assert "--state-dir" in caplog.text


def test_without_a_home_folder_it_is_measured_and_said(
    bundle_elsewhere: Bundle,
    stopwatch: Stopwatch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with caplog.at_level(logging.WARNING):
        assert choose(bundle_elsewhere, None, HostOptions()).variant.name == FAST
    assert "no home folder" in caplog.text


def test_timing_that_takes_too_long_leaves_optimizes_choice(
    bundle_elsewhere: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = HostOptions(tmp_path / "state", limit_s=1e-6)
    with caplog.at_level(logging.WARNING):
        choice = choose(bundle_elsewhere, None, options)
    assert (choice.variant.name, choice.by) == (SLOW, ChosenBy.BUNDLE)
    assert "could not be measured on this host" in caplog.text
    assert "edgewright tune" in caplog.text
    assert list((tmp_path / "state").rglob("*.json")) == []


def test_a_server_measures_serves_and_uses_the_record_at_its_next_start(
    publish: Callable[..., Path], launch: Launch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No stand-in: real sessions, really timed."""
    repository, state = publish(news=RECIPE), tmp_path / "state"
    before = {file: file.read_bytes() for file in repository.rglob("*") if file.is_file()}
    with caplog.at_level(logging.INFO):
        first = launch(repository, state_dir=state, remeasure_seconds=8.0)
    assert "measuring its variants on this host" in caplog.text
    assert first.classify("bank shares").classifications[0].label
    told = first.models.GetModel(GetModelRequest()).model
    (record,) = state.rglob("*-threads.json")
    chosen = json.loads(record.read_bytes())["result"]["chosen"]
    assert (told.variant, told.chosen_variant) == (chosen, SLOW)
    assert told.choice_source == CHOICE_SOURCE_HOST
    assert told.certificate.verdict == VERDICT_UNVERIFIED
    labels = {"variant": chosen, "verdict": "UNVERIFIED", "chosen_by": "host"}
    labels |= {"model": "news", "version": "1", "runtime": told.runtime}
    assert first.metric("edgewright_model_info", **labels) == 1
    caplog.clear()
    with caplog.at_level(logging.INFO):
        second = launch(repository, state_dir=state)
    assert "chosen on this host earlier" in caplog.text
    assert "measuring" not in caplog.text
    assert second.models.GetModel(GetModelRequest()).model.variant == chosen
    assert {file: file.read_bytes() for file in repository.rglob("*") if file.is_file()} == before


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where `[serve]` alone is installed."""

    def get(name: str) -> Any:
        if name == "openvino":
            raise BackendUnavailableError("OpenVINO is not installed")
        return backends.get_backend(name)

    monkeypatch.setattr(host_choice, "get_backend", get)


OPENVINO = other_variant("openvino-int8", backend="openvino")


@pytest.mark.usefixtures("without_openvino")
def test_where_the_chosen_runtime_is_missing_the_fastest_certified_one_answers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failed = other_variant("onnxruntime-failed", Verdict.FAIL)
    recipe = Recipe(chosen=OPENVINO.name, extra=(OPENVINO, other_variant(FAST), failed))
    bundle = Bundle.open(make_bundle(tmp_path / "bundle", recipe))
    with caplog.at_level(logging.WARNING):
        assert choose_variant(bundle).name == FAST
    assert "openvino-int8 cannot run here (OpenVINO is not installed)" in caplog.text
    assert f"{FAST} answers in its place" in caplog.text


@pytest.mark.usefixtures("without_openvino")
def test_a_stand_in_that_is_certified_for_this_host_is_not_measured(
    publish: Callable[..., Path], stopwatch: Stopwatch, options: HostOptions
) -> None:
    model = load(publish(news=Recipe(chosen=OPENVINO.name, extra=(OPENVINO,))), options)
    assert (model.variant.name, model.chosen_by) == (FP32, ChosenBy.BUNDLE)
    assert model.verdict is Verdict.PASS
    assert stopwatch.timed == []


@pytest.mark.usefixtures("without_openvino")
def test_without_any_certified_fallback_the_missing_runtime_is_named(tmp_path: Path) -> None:
    recipe = Recipe(certificate=Verdict.FAIL, chosen=OPENVINO.name, extra=(OPENVINO,))
    with pytest.raises(BackendUnavailableError, match="OpenVINO is not installed"):
        choose_variant(Bundle.open(make_bundle(tmp_path / "bundle", recipe)))


def test_the_chosen_variant_answers_where_its_runtime_is_there(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert choose_variant(opened) == opened.chosen
