"""What of grpcio's private module serves calls, and what is told where that is gone."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from edgewright.errors import BackendUnavailableError
from edgewright.serve import grpc_core

from .conftest import Launch

ROOT = Path(__file__).parents[2]


def test_the_grpcio_that_is_installed_serves() -> None:
    grpc_core.check_core()


def test_one_that_lacks_what_is_used_is_told_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(**vars(grpc_core.core))
    other.Server = SimpleNamespace(**dict.fromkeys(dir(other.Server)))
    del other.Server.request_call, other.auth_context
    monkeypatch.setattr(grpc_core, "core", other)
    with pytest.raises(BackendUnavailableError) as told:
        grpc_core.check_core()
    assert str(told.value) == (
        f"grpcio {grpc.__version__} lacks Server.request_call, auth_context, by which calls are "
        "served; install one that is known to serve: pip install 'grpcio>=1.83.0,<=1.85.3'"
    )


@pytest.mark.parametrize("version", ["1.83.0", "1.84.2", "1.85.3"])
def test_of_one_that_was_tested_nothing_is_said(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(grpc, "__version__", version)
    grpc_core.warn_of_untested()
    assert not caplog.records


@pytest.mark.parametrize("version", ["1.9.0", "1.82.3", "1.85.4", "1.100.0", "2.0.0rc1"])
def test_of_one_that_was_not_tested_a_server_that_starts_warns(
    version: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    launch: Launch,
) -> None:
    monkeypatch.setattr(grpc, "__version__", version)
    launch(load=False)
    (told,) = (each.getMessage() for each in caplog.records if each.name == grpc_core.__name__)
    assert told == (
        f"grpcio {version} has not been tested to serve, and may refuse or fail calls that others "
        "answer; install one that has: pip install 'grpcio>=1.83.0,<=1.85.3'"
    )


def test_the_first_that_was_tested_is_the_lowest_that_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in ("serve", "serve-gpu"):
        assert f"grpcio>={grpc_core.TESTED[0]}" in project["optional-dependencies"][extra]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_pages_name_the_versions_that_were_tested(page: str) -> None:
    told = " ".join((ROOT / page).read_text().split())
    assert re.search(f"{re.escape(grpc_core.TESTED[0])} and {re.escape(grpc_core.TESTED[1])}", told)
