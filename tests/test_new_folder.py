"""Artifacts are written whole or not at all, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_artifact import files_of, write

from edgewright.errors import ConfigError
from edgewright.manifest import (
    MANIFEST_FILE,
    SEAL_FILE,
    new_folder,
    refuse_existing,
    verify,
)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "sample"
    with new_folder(path) as staging:
        write(staging)
    return path


def replace_with(target: Path, action: Callable[[Path], Any], *, overwrite: bool = False) -> None:
    """Write another artifact to ``target`` and do ``action`` before it is in place."""
    with new_folder(target, overwrite=overwrite) as staging:
        write(staging, files={"new": b"1"})
        action(staging)


def give_up(staging: Path) -> None:
    raise RuntimeError(f"midway in {staging}")


def test_a_target_that_exists_is_refused_before_any_work(artifact: Path) -> None:
    before = files_of(artifact)
    with pytest.raises(ConfigError, match=r"exists already.*--overwrite"), new_folder(artifact):
        pytest.fail("the block was entered")
    assert files_of(artifact) == before


def test_overwriting_replaces_an_artifact_and_leaves_nothing_beside_it(artifact: Path) -> None:
    with new_folder(artifact, overwrite=True) as staging:
        write(staging, files={"only": b"1"})
    assert set(verify(artifact).manifest["files"]) == {"only"}
    assert [path.name for path in artifact.parent.iterdir()] == ["sample"]


def test_an_empty_folder_may_be_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with new_folder(target, overwrite=True) as staging:
        write(staging)
    verify(target)


def foreign_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")


def foreign_manifest(path: Path) -> None:
    path.mkdir()
    (path / MANIFEST_FILE).write_text("{}")


def foreign_file(path: Path) -> None:
    path.write_text("x")


def foreign_link(path: Path) -> None:
    other = path.with_name("other")
    other.mkdir()
    write(other)
    path.symlink_to(other)


def dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    "make", [foreign_folder, foreign_manifest, foreign_file, foreign_link, dangling_link]
)
def test_what_is_not_ours_is_never_deleted(tmp_path: Path, make: Any) -> None:
    target = tmp_path / "target"
    make(target)
    before = (files_of(tmp_path), target.is_symlink())
    with pytest.raises(ConfigError, match=r"choose another path|give the path it points to"):
        refuse_existing(target, overwrite=True)
    with pytest.raises(ConfigError), new_folder(target, overwrite=True):
        pytest.fail("the block was entered")
    assert (files_of(tmp_path), target.is_symlink()) == before


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(ConfigError, match="exists already"):
        replace_with(target, lambda staging: foreign_folder(target))
    assert files_of(tmp_path) == {"target/thesis.tex": b"years of work"}


def test_a_failure_leaves_neither_target_nor_staging(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="midway"):
        replace_with(tmp_path / "a/target", give_up)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_failure_leaves_the_old_artifact_as_it_was(artifact: Path) -> None:
    before = files_of(artifact)
    with pytest.raises(RuntimeError, match="midway"):
        replace_with(artifact, give_up, overwrite=True)
    assert files_of(artifact) == before
    assert [path.name for path in artifact.parent.iterdir()] == ["sample"]


def killed_while(code: str, target: Path, *, overwrite: bool = False) -> None:
    """Run a writer of ``target`` that is killed where ``code``, inside the block, says so."""
    script = f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_new_folder import replace_with
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def action(staging):
    {code}
replace_with(pathlib.Path({str(target)!r}), action, overwrite={overwrite})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


DIE_AT_SECOND_RENAME = (
    "renames = iter([pathlib.Path.rename, die]); "
    "pathlib.Path.rename = lambda path, to: next(renames)(path, to)"
)


def test_a_killed_writer_leaves_no_target_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "target"
    killed_while("die()", target)
    killed_while("die()", target)
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1  # the second run removed the first one's
    with new_folder(target) as staging:
        write(staging)
    verify(target)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_killed_writer_leaves_the_old_artifact_as_it_was(artifact: Path) -> None:
    before = files_of(artifact)
    killed_while("die()", artifact, overwrite=True)
    assert files_of(artifact) == before
    verify(artifact)


def test_what_a_killed_writer_was_replacing_comes_back(artifact: Path) -> None:
    before = files_of(artifact)
    killed_while(DIE_AT_SECOND_RENAME, artifact, overwrite=True)
    assert not artifact.exists()
    with pytest.raises(ConfigError, match="exists already"), new_folder(artifact):
        pytest.fail("the block was entered")
    assert files_of(artifact) == before
    assert [path.name for path in artifact.parent.iterdir()] == ["sample"]


def test_a_living_writer_keeps_what_it_writes(tmp_path: Path) -> None:
    """Another writer of the same target, in the same process or not, removes only dead ones'."""
    target = tmp_path / "target"
    with new_folder(target) as mine:
        with pytest.raises(RuntimeError, match="midway"):
            replace_with(target, give_up)
        killed_while("die()", target)
        write(mine)
    verify(target)


def test_only_the_targets_own_leftovers_are_removed(tmp_path: Path) -> None:
    others = (".b.partial-1", ".ab.partial-1", ".a*.partial-1", "a.partial-1", ".[a].partial-1")
    for name in others:
        (tmp_path / name).mkdir()
    for target in ("a", "[ab]"):
        with new_folder(tmp_path / target) as staging:
            write(staging)
    assert {path.name for path in tmp_path.iterdir()} == {*others, "a", "[ab]"}


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_while_flushing_leaves_the_old_artifact(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(artifact)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            replace_with(artifact, lambda staging: None, overwrite=True)
    assert files_of(artifact) == before
    assert [path.name for path in artifact.parent.iterdir()] == ["sample"]


def test_an_artifact_that_cannot_be_put_in_place_leaves_the_old_one(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(artifact)
    rename = Path.rename

    def refuse_staging(path: Path, to: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse_staging)
        with pytest.raises(OSError, match="Input/output error"):
            replace_with(artifact, lambda staging: None, overwrite=True)
    assert files_of(artifact) == before
    assert [path.name for path in artifact.parent.iterdir()] == ["sample"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can be mounted by root alone, and not in every container")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_leaves_the_old_artifact_as_it_was(small_disk: Path) -> None:
    target = small_disk / "sample"
    with new_folder(target) as staging:
        write(staging)
    before = files_of(target)
    with pytest.raises(OSError, match="No space left"):
        replace_with(
            target, lambda staging: (staging / "big").write_bytes(bytes(1 << 20)), overwrite=True
        )
    assert files_of(target) == before
    verify(target)
    assert [path.name for path in small_disk.iterdir()] == ["sample"]


def test_everything_is_flushed_before_the_target_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    flushed: list[tuple[str, bool]] = []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        flushed.append((path.name, target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with new_folder(target) as staging:
        write(staging)
    names = {Path(name).name for name in files_of(target)}
    before = {name for name, appeared in flushed if not appeared}
    assert names | {"nested", "deeper"} <= before
    assert flushed[-1] == (tmp_path.name, True)


def test_files_keep_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    """A server often runs as another user than the one who trained."""
    before = os.umask(0o022)
    try:
        with new_folder(tmp_path / "target") as staging:
            write(staging)
    finally:
        os.umask(before)
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "target" / SEAL_FILE).stat().st_mode & 0o777 == 0o644
