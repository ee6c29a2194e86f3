from __future__ import annotations

import logging
import resource

import pytest

from edgewright.serve.open_files import allow_open_files


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The process's own, soft and hard; the last is what holds."""
    held = [(256, 1024)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: held[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: held.append(limits))
    return held


def test_a_low_limit_is_raised_and_a_high_one_left(limits: list[tuple[int, int]]) -> None:
    allow_open_files(1000)
    allow_open_files(500)
    assert limits == [(256, 1024), (1000, 1024)]


def test_what_the_system_does_not_let_is_told(
    limits: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        allow_open_files(2000)
    assert limits[-1] == (1024, 1024)
    assert "may open 1024 files" in caplog.text


@pytest.mark.parametrize("refusal", [PermissionError(1, "not permitted"), ValueError("too high")])
def test_a_system_that_lets_nothing_be_raised_is_told_and_stops_nobody(
    limits: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refusal: Exception,
) -> None:
    def refuse(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_open_files(1000)
    assert limits == [(256, 1024)]
    assert "may open 256 files" in caplog.text
