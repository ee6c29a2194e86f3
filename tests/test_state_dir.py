"""Results of one host, kept beside no bundle."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgewright.errors import ConfigError, IntegrityError
from edgewright.state_dir import StateDir, default_state_dir

BUNDLE = "ab" * 32


def test_the_default_follows_the_xdg_convention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ann"))
    assert default_state_dir({}) == Path("/home/ann/.local/state/edgewright")
    assert default_state_dir({"XDG_STATE_HOME": ""}) == default_state_dir({})
    assert default_state_dir({"XDG_STATE_HOME": "/var/state"}) == Path("/var/state/edgewright")
    assert StateDir.at(None).path == default_state_dir()
    assert StateDir.at(Path("here")).path == Path("here")


def test_a_user_without_a_home_is_told_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="--state-dir"):
        default_state_dir({})


def test_what_is_written_of_a_bundle_is_read_of_that_bundle_alone(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    assert state.read(BUNDLE, "engines") is None
    assert not state.path.exists()
    file = state.write(BUNDLE, "engines", {"built": 1})
    state.write(BUNDLE, "engines", {"built": 2})
    assert state.read(BUNDLE, "engines") == {"built": 2}
    assert state.read(BUNDLE, "measurements") is None
    assert state.read("cd" * 32, "engines") is None
    assert [each.name for each in file.parent.iterdir()] == ["engines.json"]


def test_a_lock_is_told_to_who_waits_for_it_and_is_no_result(tmp_path: Path) -> None:
    state, told = StateDir(tmp_path / "state"), list[str]()
    with ThreadPoolExecutor(1) as pool:
        with state.locked(BUNDLE, lambda: told.append("first")):
            assert not state.of(BUNDLE).exists()
            waits, free = threading.Event(), threading.Event()

            def wait_for_it() -> None:
                with state.locked(BUNDLE, waits.set):
                    free.set()

            waiting = pool.submit(wait_for_it)
            assert waits.wait(30)
            assert not free.is_set()
        waiting.result(30)
    assert free.is_set()
    assert told == []


@pytest.mark.parametrize("change", [lambda text: text.replace(b"7", b"8"), lambda text: text[:9]])
def test_an_altered_result_is_named(tmp_path: Path, change) -> None:
    state = StateDir(tmp_path)
    file = state.write(BUNDLE, "engines", {"rows": 7})
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(IntegrityError, match=r"engines\.json was altered; remove it"):
        state.read(BUNDLE, "engines")


def test_a_write_that_fails_leaves_the_earlier_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateDir(tmp_path)
    file = state.write(BUNDLE, "engines", {"rows": 7})

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        state.write(BUNDLE, "engines", {"rows": 8})
    assert state.read(BUNDLE, "engines") == {"rows": 7}
    assert list(file.parent.iterdir()) == [file]
