"""A running server whose models are changed under it, through its admin port and its folder."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from edgewright.admin_command import admin
from edgewright.cli import run
from edgewright.errors import BackendUnavailableError
from edgewright.repository import Repository
from edgewright.serve import host_choice, proof_process
from edgewright.serve.config import ServeConfig
from edgewright.serve.models import ServedModel
from edgewright.v1 import model_pb2
from edgewright.v1.admin_pb2 import (
    GetStatusRequest,
    LoadVersionRequest,
    RollbackModelRequest,
    SetTrafficRequest,
    UnloadModelRequest,
)
from edgewright.v1.admin_pb2_grpc import AdminServiceStub

from .bundles import Recipe, graph, make_bundle, random_texts, seal_again
from .conftest import Launch, Running, until

Code = grpc.StatusCode
BadBundle = Callable[[Path], None]


class Served:
    """A server with an admin port, and the repository below it."""

    def __init__(self, running: Running, repository: Repository, bundles: Path) -> None:
        self.running = running
        self.repository = repository
        self._bundles, self._serial = bundles, count()
        self.target = f"127.0.0.1:{running.server.admin_port}"
        self.channel = grpc.insecure_channel(self.target)
        self.admin = AdminServiceStub(self.channel)

    def publish(self, recipe: Recipe = Recipe(), *, current: bool = False) -> int:
        bundle = make_bundle(self._bundles / str(next(self._serial)), recipe)
        return self.repository.publish(bundle, "news", keep_current=not current)

    def look(self) -> None:
        self.running.loop.run(self.running.server.follower.look())

    def version(self, version: int = 0) -> int:
        return int(self.running.classify("bank shares", version=version).version)

    def status(self) -> Any:
        return self.admin.GetStatus(GetStatusRequest(model="news"), timeout=30).models[0]


@pytest.fixture
def served(launch: Launch, tmp_path: Path) -> Iterator[Served]:
    """Version 1 of "news"."""
    repository = Repository(tmp_path / "repository")
    repository.publish(make_bundle(tmp_path / "first"), "news")
    each = Served(launch(repository.path, admin_port=0), repository, tmp_path / "bundles")
    yield each
    each.channel.close()


def code_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as failure:
        call()
    return failure.value.code(), failure.value.details()


def test_no_request_fails_in_fifty_reloads_and_rollbacks(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fifty proofs that give way would take minutes where others keep every core busy.
    monkeypatch.setattr(proof_process, "NICE", 0)
    served.running.server._background.no_core_idle_until = float("inf")
    served.publish(Recipe(seed=1))
    done = Event()

    def call_until_done() -> list[int]:
        versions = []
        while not done.is_set():
            versions.append(served.version())
        return versions

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(call_until_done) for _ in range(4)]
        try:
            for turn in range(50):
                if turn % 2:
                    request = RollbackModelRequest(model="news")
                    told = served.admin.RollbackModel(request, timeout=60).status
                else:
                    load = LoadVersionRequest(model="news", version=2)
                    told = served.admin.LoadVersion(load, timeout=60).status
                assert told.current_version == (1 if turn % 2 else 2)
                assert served.version() == told.current_version
        finally:
            done.set()
        answered = {version for caller in callers for version in caller.result()}
    assert answered == {1, 2}


def test_calls_in_flight_finish_on_the_version_that_they_began_with(
    served: Served, gate: Callable[[], Any]
) -> None:
    served.publish()
    loaded = served.running.loop.run(served.running.server.follower._proven("news", [2]))
    held = gate()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(served.version)
        assert held.entered.wait(30)
        served.repository.make_current("news", 2)
        follow = served.running.server.follower._follow_now("news", loaded)
        served.running.loop.run(follow)
        assert served.status().current_version == 2
        held.open.set()
        assert call.result() == 1
    assert served.version() == 2


def test_what_left_is_freed_and_its_series_end(served: Served) -> None:
    registry = served.running.server.registry
    model = registry.ready("news")
    references = [weakref.ref(model), *(weakref.ref(each) for each in model.session.each)]
    del model
    served.version()
    served.publish()
    served.admin.LoadVersion(LoadVersionRequest(model="news"), timeout=60)

    def gone() -> bool:
        gc.collect()
        return all(reference() is None for reference in references)

    until(gone)
    named = {"model": "news", "version": "1"}
    value = served.running.server.instruments.registry.get_sample_value
    assert value("edgewright_model_loaded_timestamp_seconds", named) is None
    assert value("edgewright_model_loaded_timestamp_seconds", {**named, "version": "2"})


def flipped(version: Path) -> None:
    file = version / "variants" / "fp32.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def half_copied(version: Path) -> None:
    file = version / "variants" / "fp32.onnx"
    file.write_bytes(file.read_bytes()[:100])


def unsealed(version: Path) -> None:
    (version / "seal.json").unlink()


def without_bundle(version: Path) -> None:
    shutil.rmtree(version)
    version.mkdir()
    (version / "readme.txt").write_text("later")


def without_numbers(version: Path) -> None:
    poisoned = graph(Recipe(), noise=float("nan"))
    (version / "variants" / "fp32.onnx").write_bytes(poisoned.SerializeToString())
    seal_again(version)


def untouched(_version: Path) -> None:
    pass


BAD: dict[str, tuple[Recipe, BadBundle, str]] = {
    "a flipped byte": (Recipe(), flipped, "was altered"),
    "a half-copied file": (Recipe(), half_copied, "has 100 bytes where"),
    "no seal": (Recipe(), unsealed, "seal.json is missing"),
    "no bundle": (Recipe(), without_bundle, "holds no manifest.json"),
    "wrong goldens": (
        Recipe(wrong_goldens=("onnxruntime-fp32",)),
        untouched,
        "gets other scores than recorded",
    ),
    "no numbers": (Recipe(), without_numbers, "golden 0 gets other scores than recorded (by nan"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_bundle_never_displaces_a_good_one(served: Served, kind: str) -> None:
    recipe, spoil, reason = BAD[kind]
    version = served.publish(recipe)
    spoil(served.repository.path / "news" / str(version))
    load = LoadVersionRequest(model="news", version=version)
    code, details = code_of(lambda: served.admin.LoadVersion(load, timeout=60))
    assert code is Code.FAILED_PRECONDITION
    assert reason in details
    assert served.repository.current("news") == 1
    served.repository.make_current("news", version)  # as `publish` does, unproven
    served.look()
    assert served.version() == 1
    status = served.status()
    assert (status.wanted_version, status.current_version) == (version, 1)
    assert [each.version for each in status.problems] == [version]
    assert reason in status.problems[0].message
    listed = served.running.models.ListModels(model_pb2.ListModelsRequest(), timeout=30).models
    assert [(each.version, each.state) for each in listed] == [
        (1, model_pb2.MODEL_STATE_READY),
        (version, model_pb2.MODEL_STATE_FAILED),
    ]
    request = model_pb2.GetModelRequest(model="news", version=version)
    assert reason in served.running.models.GetModel(request, timeout=30).model.problem


def test_a_version_whose_runtime_is_missing_is_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(name: str) -> Any:
        raise BackendUnavailableError(f"{name} is not installed; pip install it")

    version = served.publish()
    with monkeypatch.context() as patch:
        patch.setattr(host_choice, "get_backend", get)
        load = LoadVersionRequest(model="news", version=version)
        code, details = code_of(lambda: served.admin.LoadVersion(load, timeout=60))
        assert code is Code.FAILED_PRECONDITION
        assert "onnxruntime is not installed; pip install it" in details
        assert "cannot be loaded" not in details  # as if it were for want of memory
        served.repository.make_current("news", version)
        served.look()
        served.look()
    assert served.version() == 1
    (problem,) = served.status().problems
    assert "onnxruntime is not installed" in problem.message
    refused = served.running.metric("edgewright_refused_loads_total", model="news")
    assert refused == 1  # of the call; for the same files it is not tried again


def health(served: Served, name: str) -> Any:
    stub = HealthStub(served.running.channel)
    return stub.Check(HealthCheckRequest(service=name), timeout=30).status


def test_unloading_turns_a_model_not_serving_and_swapping_never_does(served: Served) -> None:
    watch = HealthStub(served.running.channel).Watch
    turns = watch(HealthCheckRequest(service="news"), timeout=120)
    assert next(turns).status == HealthCheckResponse.SERVING
    served.publish()
    served.admin.LoadVersion(LoadVersionRequest(model="news"), timeout=60)
    served.admin.RollbackModel(RollbackModelRequest(model="news"), timeout=60)
    status = served.admin.UnloadModel(UnloadModelRequest(model="news"), timeout=60).status
    assert (status.unloaded, status.current_version) == (True, 0)
    assert next(turns).status == HealthCheckResponse.NOT_SERVING  # the next turn that there was
    assert health(served, "") == HealthCheckResponse.SERVING
    assert code_of(served.version)[0] is Code.NOT_FOUND
    served.admin.LoadVersion(LoadVersionRequest(model="news", version=1), timeout=60)
    assert next(turns).status == HealthCheckResponse.SERVING
    turns.cancel()
    assert served.version() == 1


def test_a_model_that_appears_becomes_serving(served: Served, bundle: Path) -> None:
    served.repository.publish(bundle, "mail")
    served.look()
    assert health(served, "mail") == HealthCheckResponse.SERVING
    assert served.running.classify("bank", model="mail").model == "mail"


def test_a_canary_gets_its_share_and_explicit_versions_get_what_they_name(served: Served) -> None:
    served.publish(Recipe(seed=1))
    traffic = SetTrafficRequest(model="news", canary_version=2, canary_weight=0.5)
    status = served.admin.SetTraffic(traffic, timeout=60).status
    assert (status.canary_version, status.canary_weight) == (2, 0.5)
    assert {served.version() for _ in range(60)} == {1, 2}  # fails once in 2^58
    assert {served.version(1), served.version(2)} == {1, 2}
    assert {served.version(1) for _ in range(20)} == {1}
    served.admin.SetTraffic(SetTrafficRequest(model="news"), timeout=60)
    assert {served.version() for _ in range(20)} == {1}
    assert code_of(lambda: served.version(2))[0] is Code.NOT_FOUND


def compared(served: Served, outcome: str) -> float:
    named = {"model": "news", "version": "1", "shadow_version": "2", "outcome": outcome}
    return served.running.metric("edgewright_shadow_rows_total", **named)


def test_a_shadow_gets_copies_and_is_compared(served: Served) -> None:
    served.publish(Recipe(seed=1))
    served.admin.SetTraffic(SetTrafficRequest(model="news", shadow_version=2), timeout=60)
    texts = random_texts(40)
    mine = [each.label for each in served.running.classify(*texts, version=1).classifications]
    until(lambda: compared(served, "agreed") + compared(served, "differed") == 40)
    other = [each.label for each in served.running.classify(*texts, version=2).classifications]
    agree = sum(one == two for one, two in zip(mine, other, strict=True))
    assert (compared(served, "agreed"), compared(served, "differed")) == (agree, 40 - agree)
    assert 0 < agree < 40
    pair = {"model": "news", "version": "1", "shadow_version": "2"}
    assert served.running.metric("edgewright_shadow_score_difference_count", **pair) == 40


def test_the_series_of_a_pair_end_with_either_of_its_versions(served: Served) -> None:
    for seed in (1, 2):
        served.publish(Recipe(seed=seed))
    pages = served.running.server.instruments.registry

    def pairs() -> set[tuple[str, str]]:
        return {
            (sample.labels.get("version", ""), sample.labels["shadow_version"])
            for family in pages.collect()
            for sample in family.samples
            if "shadow_version" in sample.labels
        }

    for current in (1, 3):
        if current == 3:
            served.admin.LoadVersion(LoadVersionRequest(model="news", version=3), timeout=60)
        served.admin.SetTraffic(SetTrafficRequest(model="news", shadow_version=2), timeout=60)
        served.version()
        until(lambda: pairs() == {(str(current), "2"), ("", "2")})  # noqa: B023 -- ended at once
    served.admin.SetTraffic(SetTrafficRequest(model="news"), timeout=60)
    until(lambda: not pairs())


def test_a_comparison_that_outlasts_its_pair_leaves_no_series(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.publish(Recipe(seed=1))
    served.admin.SetTraffic(SetTrafficRequest(model="news", shadow_version=2), timeout=60)
    plain, entered, let_go = ServedModel.scores, Event(), Event()

    def scores(model: ServedModel, rows: Any) -> Any:
        if model.version == 2:
            entered.set()
            assert let_go.wait(60)
        return plain(model, rows)

    with monkeypatch.context() as patch:
        patch.setattr(ServedModel, "scores", scores)
        served.version()
        assert entered.wait(60)
        served.admin.SetTraffic(SetTrafficRequest(model="news"), timeout=60)
        gone = {"model": "news", "version": "2"}
        value = served.running.server.instruments.registry.get_sample_value
        until(lambda: value("edgewright_model_loaded_timestamp_seconds", gone) is None)
        let_go.set()
        shadow = served.running.server._shadow
        until(lambda: shadow._task is not None and shadow._task.done())
    page = served.running.server.instruments.registry.collect()
    assert not [
        each for family in page for each in family.samples if "shadow_version" in each.labels
    ]


def test_copies_are_dropped_while_callers_wait_and_counted(
    served: Served, gate: Callable[[], Any]
) -> None:
    served.publish(Recipe(seed=1))
    served.admin.SetTraffic(SetTrafficRequest(model="news", shadow_version=2), timeout=60)
    held = gate()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(served.running.classify, *random_texts(100))
        assert held.entered.wait(30)
        held.open.set()
        first.result()
    until(lambda: compared(served, "agreed") + compared(served, "differed") == 64)
    assert compared(served, "dropped") == 36


def test_a_shadow_that_fails_is_counted_and_no_caller_notices(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.publish(Recipe(seed=1))
    served.admin.SetTraffic(SetTrafficRequest(model="news", shadow_version=2), timeout=60)
    plain = ServedModel.scores

    def scores(model: ServedModel, rows: Any) -> Any:
        if model.version == 2:
            raise RuntimeError("no memory")
        return plain(model, rows)

    monkeypatch.setattr(ServedModel, "scores", scores)
    assert served.version() == 1
    until(lambda: compared(served, "failed") == 1)
    assert served.version() == 1


@pytest.mark.parametrize(
    ("method", "request_message", "code", "told"),
    [
        ("LoadVersion", LoadVersionRequest(), Code.INVALID_ARGUMENT, "model is empty"),
        ("LoadVersion", LoadVersionRequest(model="../x"), Code.NOT_FOUND, "it holds: news"),
        ("LoadVersion", LoadVersionRequest(model="news", version=9), Code.NOT_FOUND, "are: 1"),
        ("LoadVersion", LoadVersionRequest(model="news", version=-1), Code.NOT_FOUND, "are: 1"),
        ("LoadVersion", LoadVersionRequest(model="n" * 100_000), Code.NOT_FOUND, "no model"),
        ("RollbackModel", RollbackModelRequest(model="news"), Code.NOT_FOUND, "no earlier"),
        ("UnloadModel", UnloadModelRequest(model="\0"), Code.NOT_FOUND, "no model"),
        ("GetStatus", GetStatusRequest(model="mail"), Code.NOT_FOUND, "there are: news"),
        (
            "SetTraffic",
            SetTrafficRequest(model="news", canary_version=1, canary_weight=0.5),
            Code.INVALID_ARGUMENT,
            "is current",
        ),
        (
            "SetTraffic",
            SetTrafficRequest(model="news", canary_version=1, canary_weight=1.5),
            Code.INVALID_ARGUMENT,
            "above 0 and at most 1",
        ),
        (
            "SetTraffic",
            SetTrafficRequest(model="news", canary_version=1, canary_weight=float("nan")),
            Code.INVALID_ARGUMENT,
            "above 0 and at most 1",
        ),
        (
            "SetTraffic",
            SetTrafficRequest(model="news", canary_weight=0.5),
            Code.INVALID_ARGUMENT,
            "name one",
        ),
        (
            "SetTraffic",
            SetTrafficRequest(model="news", shadow_version=7),
            Code.NOT_FOUND,
            "no version 7",
        ),
    ],
)
def test_bad_admin_calls_change_nothing_and_say_why(
    served: Served, method: str, request_message: Any, code: grpc.StatusCode, told: str
) -> None:
    before = (served.repository.path / "news" / "current.json").read_bytes()
    found, details = code_of(lambda: getattr(served.admin, method)(request_message, timeout=60))
    assert found is code
    assert told in details
    assert (served.repository.path / "news" / "current.json").read_bytes() == before
    assert served.version() == 1


def test_a_repository_that_cannot_be_written_is_told(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.publish()

    def read_only(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("edgewright.repository.replace_file", read_only)
        load = LoadVersionRequest(model="news")
        code, details = code_of(lambda: served.admin.LoadVersion(load, timeout=60))
    assert code is Code.FAILED_PRECONDITION
    assert "Read-only file system" in details
    assert served.version() == 1


@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
def test_the_admin_service_is_not_on_the_public_port(served: Served, used: bool) -> None:
    if used:
        assert served.status().current_version == 1
    stub = AdminServiceStub(served.running.channel)
    code, _ = code_of(lambda: stub.GetStatus(GetStatusRequest(), timeout=30))
    assert code is Code.UNIMPLEMENTED


def test_a_server_without_the_option_has_no_admin_port(launch: Launch) -> None:
    assert launch().server.admin_port is None


def test_what_an_admin_changed_is_in_the_log_and_what_he_could_not_is_not(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="edgewright.serve.admin_service"):
        code_of(lambda: served.admin.RollbackModel(RollbackModelRequest(model="news"), timeout=60))
        served.admin.UnloadModel(UnloadModelRequest(model="news"), timeout=60)
    lines = [each for each in caplog.records if each.name == "edgewright.serve.admin_service"]
    (line,) = (each.getMessage() for each in lines)
    assert line.startswith("UnloadModel of news, by ipv4:127.0.0.1:")


@pytest.mark.parametrize(
    ("host", "tokens", "exposed"),
    [
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("[::1]", None, False),
        ("0.0.0.0", None, True),
        ("10.1.2.3", None, True),
        ("0.0.0.0", Path("tokens.txt"), False),
    ],
)
def test_an_admin_port_for_everybody_is_known_as_such(
    host: str, tokens: Path | None, exposed: bool
) -> None:
    config = ServeConfig(Path("repository"), admin_port=0, admin_host=host, tokens=tokens)
    assert config.admin_is_exposed == exposed
    assert not replace(config, admin_port=None).admin_is_exposed


def command(served: Served, *arguments: str) -> Any:
    done = CliRunner().invoke(
        admin, [*arguments, "--target", served.target, "--json"], catch_exceptions=False
    )
    assert done.exit_code == 0
    return json.loads(done.output)


def test_the_commands_do_what_the_calls_do(served: Served) -> None:
    served.publish()
    served.publish()
    assert command(served, "load", "news", "--version", "2")["current_version"] == 2
    assert command(served, "rollback", "news")["current_version"] == 1
    told = command(served, "traffic", "news", "--canary", "2", "--weight", "0.25", "--shadow", "3")
    assert (told["canary"], told["shadow_version"]) == ({"version": 2, "weight": 0.25}, 3)
    (model,) = command(served, "status")["models"]
    assert model == told
    assert command(served, "unload", "news")["unloaded"]
    assert command(served, "load", "news")["current_version"] == 3


def test_the_commands_say_what_is_wrong(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.publish(Recipe(wrong_goldens=("onnxruntime-fp32",)))
    at = ["--target", served.target]
    for arguments, exit_code, told in (
        (["load", "news", *at], 4, "gets other scores than recorded"),
        (["load", "mail", *at], 4, "no model 'mail'"),
        (["rollback", "news", *at], 4, "no earlier version"),
        (["traffic", "news", "--canary", "2", *at], 2, "--canary and --weight"),
        (["status", "--target", "127.0.0.1:1"], 6, "serve REPOSITORY --admin-port 1`"),
        (["status", "--target", "nonsense"], 2, "HOST:PORT is expected"),
        (["status", "--target", f"127.0.0.1:{served.running.server.port}"], 6, "is no admin port"),
    ):
        assert run(["admin", *arguments]) == exit_code, arguments
        assert told in capsys.readouterr().err
    assert run(["predict", *at, "goal"]) == 6
    assert "answers in gRPC, but not this call" in capsys.readouterr().err
