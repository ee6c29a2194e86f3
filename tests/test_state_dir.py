"""Where this host keeps what it found out about bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgewright.errors import ConfigError
from edgewright.state_dir import StateDir


def test_a_folder_that_is_given_is_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
    assert StateDir.find(tmp_path / "given").root == tmp_path / "given"


def test_without_one_it_is_the_users_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "")
    assert StateDir.find(None).root == tmp_path / ".local" / "state" / "edgewright"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert StateDir.find(None).root == tmp_path / "state" / "edgewright"


def test_a_user_without_a_home_is_told_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="--state-dir"):
        StateDir.find(None)


def test_each_bundle_has_a_folder_of_its_own_which_is_not_made_yet(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    assert state.of("a" * 64) != state.of("b" * 64)
    assert state.of("a" * 64).parent == state.root
    assert not state.root.exists()
