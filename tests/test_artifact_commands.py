"""verify, inspect, publish and rollback as a shell sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_repository import VARIANT, make_bundle

from edgewright.bundle import Bundle
from edgewright.cli import run
from edgewright.repository import Repository


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    out, err = capsys.readouterr()
    assert err == ""
    result: dict[str, object] = json.loads(out)
    return result


def test_a_sound_artifact_is_verified(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(bundle)]) == 0
    assert capsys.readouterr().out.startswith(f"{bundle}: sound (edgewright.bundle, 1 files, ")
    assert run(["verify", str(bundle), "--json"]) == 0
    assert told(capsys) == {
        "path": str(bundle),
        "format": "edgewright.bundle",
        "files": 1,
        "manifest_sha256": Bundle.open(bundle).artifact.manifest_sha256,
    }


def test_a_flipped_byte_is_exit_4_and_its_file_is_named(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / VARIANT.file).write_bytes(b"abd")
    for command in (["verify"], ["inspect"]):
        assert run([*command, str(bundle)]) == 4
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"error: {bundle / VARIANT.file} was altered")


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_what_is_no_artifact_is_exit_4(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").touch()
    said = "not an edgewright artifact; give the folder of a checkpoint or a bundle"
    for path, words in {
        tmp_path: said,
        tmp_path / "none": "no folder at",
        tmp_path / "rows.csv": "no folder at",
    }.items():
        assert run([command, str(path)]) == 4
        assert words in capsys.readouterr().err


def test_a_bundle_is_described_with_its_variants(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(bundle)]) == 0
    described = capsys.readouterr().out
    assert "text-classification: a" in described
    assert "* onnxruntime-fp32" in described
    assert "not certified" in described
    assert run(["inspect", str(bundle), "--json"]) == 0
    assert told(capsys)["variants"] == [VARIANT.to_json()]


def test_publishing_and_rolling_back_tell_the_version(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    where = [str(repository), "--name", "news"]
    assert run(["publish", str(bundle), *where]) == 0
    assert capsys.readouterr().out == f"news version 1 is current in {repository}\n"
    better = make_bundle(tmp_path / "better", weights=b"abd")
    assert run(["publish", str(better), *where, "--json"]) == 0
    path = str(repository / "news" / "2")
    assert told(capsys) == {"model": "news", "version": 2, "path": path}
    assert run(["rollback", *where, "--json"]) == 0
    assert told(capsys) == {"model": "news", "version": 1}
    assert Repository(repository).current("news") == 1
    assert run(["rollback", *where]) == 4
    assert "no earlier version" in capsys.readouterr().err


def test_a_bundle_with_other_classes_is_published_with_a_warning(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [str(tmp_path / "repository"), "--name", "news"]
    other = make_bundle(tmp_path / "other", labels=["b", "c", "d", "e", "f", "g"])
    for path, warning in {
        bundle: "",
        other: "warning: news version 2 has other classes than version 1: "
        "new are b, c, d, e, f and 1 more, gone are a\n",
    }.items():
        assert run(["publish", str(path), *where]) == 0
        assert capsys.readouterr().err == warning
    (tmp_path / "repository" / "news" / "2" / "manifest.json").write_text("{}")
    assert run(["publish", str(bundle), *where]) == 0  # whatever became of the one before
    assert capsys.readouterr().err == ""


def test_classes_are_held_against_those_of_the_version_that_was_current(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [str(tmp_path / "repository"), "--name", "news"]
    other = make_bundle(tmp_path / "other", labels=["b"])
    better = make_bundle(tmp_path / "better", weights=b"abd")
    for arguments in (["publish", str(bundle)], ["publish", str(other)], ["rollback"]):
        assert run([*arguments, *where]) == 0
    capsys.readouterr()
    assert run(["publish", str(better), *where]) == 0
    assert capsys.readouterr().err == ""
    assert run(["publish", str(other), *where, "--keep-current"]) == 0
    assert "news version 4 has other classes than version 3: " in capsys.readouterr().err


def test_the_same_bytes_once_more_are_published_with_a_warning(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [str(tmp_path / "repository"), "--name", "news"]
    better = make_bundle(tmp_path / "better", weights=b"abd")
    again = "warning: news version 3 is version 2 once more, byte for byte\n"
    for path, warning in ((bundle, ""), (better, ""), (better, again)):
        assert run(["publish", str(path), *where]) == 0
        assert capsys.readouterr().err == warning


def test_what_cannot_be_published_says_why(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    cases = {
        (str(bundle), str(repository), "--name", "../x"): (2, "--name '../x'"),
        (str(bundle), str(repository)): (2, "--name"),
        (str(tmp_path / "none"), str(repository), "--name", "news"): (4, "no bundle at"),
    }
    for arguments, (code, message) in cases.items():
        assert run(["publish", *arguments]) == code
        assert message in capsys.readouterr().err
    assert not repository.exists()
    assert run(["rollback", str(repository), "--name", "news"]) == 4
    assert "no repository at" in capsys.readouterr().err
