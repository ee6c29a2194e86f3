"""Artifacts on disk: no byte can change unseen, and none is written by halves."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright import manifest
from edgewright.errors import ArtifactNotFoundError, ConfigError, IntegrityError
from edgewright.manifest import (
    MANIFEST_FILE,
    SEAL_FILE,
    ArtifactKind,
    canonical_json,
    measured_json,
    new_folder,
    read_artifact,
    refuse_existing,
    seal,
    sha256_bytes,
    sha256_file,
    verify,
)

KIND = ArtifactKind("edgewright.sample", 1, "sample", "edgewright sample -o SAMPLE")
FILES = {"weights.bin": bytes(range(40)), "nested/deeper/labels.json": b'["a"]', "empty": b""}
BODY = {"labels": ["business", "sport"], "seed": 0, "note": "naïve"}


def write(folder: Path, *, files: dict[str, bytes] = FILES, took_s: float = 1.5) -> str:
    """Fill and seal ``folder``; the manifest's hash."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    measured = {
        "measurements.json": measured_json({"took_s": took_s}),
        "report.html": lambda digest: f"<p>{digest}</p>".encode(),
    }
    return seal(folder, KIND, BODY, measured)


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


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_what_was_sealed_is_read_back(artifact: Path) -> None:
    read = read_artifact(artifact, KIND)
    assert read == verify(artifact)
    assert read.path == artifact
    assert read.manifest_sha256 == sha256_file(artifact / MANIFEST_FILE)
    assert {key: read.manifest[key] for key in BODY} == BODY
    assert (read.manifest["format"], read.manifest["format_version"]) == ("edgewright.sample", 1)
    assert read.manifest["files"] == {
        name: {"sha256": sha256_bytes(content), "size": len(content)}
        for name, content in FILES.items()
    }


def test_measured_files_cite_the_manifest_and_are_no_part_of_it(artifact: Path) -> None:
    digest = read_artifact(artifact, KIND).manifest_sha256
    measured = json.loads((artifact / "measurements.json").read_bytes())
    assert measured == {"took_s": 1.5, "manifest_sha256": digest}
    assert (artifact / "report.html").read_text() == f"<p>{digest}</p>"
    assert "measurements.json" not in read_artifact(artifact, KIND).manifest["files"]


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for name, files in (("one", FILES), ("two", dict(reversed(FILES.items())))):
        with new_folder(tmp_path / name) as staging:
            digests.add(write(staging, files=files))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    with new_folder(tmp_path / "slower") as staging:
        digests.add(write(staging, took_s=99.0))
    assert len(digests) == 1
    assert files_of(tmp_path / "slower") != files_of(tmp_path / "one")


@pytest.mark.parametrize(
    "name", [*FILES, MANIFEST_FILE, SEAL_FILE, "measurements.json", "report.html"]
)
def test_every_flipped_byte_is_found_and_its_file_is_named(artifact: Path, name: str) -> None:
    file = artifact / name
    content = file.read_bytes()
    for at in range(len(content)):
        for flip in (0x01, 0x80):
            file.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            with pytest.raises(IntegrityError) as caught:
                verify(artifact)
            assert str(caught.value).startswith(f"{file} "), f"byte {at} of {name}"
    file.write_bytes(content)
    verify(artifact)


@pytest.mark.parametrize("name", [MANIFEST_FILE, SEAL_FILE])
def test_reading_alone_already_refuses_a_changed_manifest_or_seal(
    artifact: Path, name: str
) -> None:
    content = (artifact / name).read_bytes()
    (artifact / name).write_bytes(content.replace(b"a", b"b", 1))
    with pytest.raises(IntegrityError, match=name):
        read_artifact(artifact, KIND)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"files": 3}', b"\xff", b"null"])
def test_a_seal_or_manifest_of_another_shape_is_told_as_altered(
    artifact: Path, content: bytes
) -> None:
    for name in (MANIFEST_FILE, SEAL_FILE):
        before = (artifact / name).read_bytes()
        (artifact / name).write_bytes(content)
        with pytest.raises(IntegrityError, match=f"{name} was altered"):
            verify(artifact)
        (artifact / name).write_bytes(before)


@pytest.mark.parametrize(
    "name", [*FILES, MANIFEST_FILE, SEAL_FILE, "measurements.json", "report.html"]
)
def test_a_missing_file_is_named(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    with pytest.raises(IntegrityError, match=f"{name} is missing"):
        verify(artifact)


@pytest.mark.parametrize("change", [b"longer", b""])
def test_a_file_of_another_size_is_named_with_both_sizes(artifact: Path, change: bytes) -> None:
    (artifact / "weights.bin").write_bytes(change)
    with pytest.raises(IntegrityError, match=rf"weights\.bin has {len(change)} bytes where 40"):
        verify(artifact)


@pytest.mark.parametrize("name", ["extra.txt", "nested/.DS_Store", "nested/deeper/manifest.json"])
def test_an_extra_file_is_named(artifact: Path, name: str) -> None:
    (artifact / name).write_text("x")
    with pytest.raises(IntegrityError, match=f"{name} is not part of the artifact"):
        verify(artifact)


def test_an_extra_link_is_named_even_where_it_leads_nowhere(artifact: Path) -> None:
    (artifact / "link").symlink_to("nowhere")
    with pytest.raises(IntegrityError, match="link is not part"):
        verify(artifact)


def test_a_folder_in_the_place_of_a_file_is_told_as_missing(artifact: Path) -> None:
    (artifact / "weights.bin").unlink()
    (artifact / "weights.bin").mkdir()
    with pytest.raises(IntegrityError, match=r"weights\.bin is missing"):
        verify(artifact)


def test_nothing_there_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none", tmp_path / "folder"):
        with pytest.raises(ArtifactNotFoundError, match="`edgewright sample -o SAMPLE`"):
            read_artifact(path, KIND)
        with pytest.raises(ArtifactNotFoundError, match="not an edgewright artifact"):
            verify(path)


def test_another_kind_or_format_is_told_by_name(artifact: Path) -> None:
    bundle = ArtifactKind("edgewright.bundle", 1, "bundle", "edgewright optimize")
    with pytest.raises(ArtifactNotFoundError, match=r"is a edgewright\.sample, and a bundle"):
        read_artifact(artifact, bundle)
    newer = ArtifactKind("edgewright.sample", 2, "sample", "edgewright sample")
    with pytest.raises(ArtifactNotFoundError, match="format 1, and this edgewright reads format 2"):
        read_artifact(artifact, newer)


Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc", max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(st.text("abcdé", max_size=3), Json))
def test_equal_values_give_equal_bytes(value: dict[str, Any]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))
    assert json.loads(canonical_json(value)) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_no_json_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"share": number})


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
from test_manifest import replace_with
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


def test_a_copy_is_as_good_as_the_original(artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    assert verify(copy).manifest_sha256 == verify(artifact).manifest_sha256


def test_hashing_reads_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_CHUNK_BYTES", 7)
    content = bytes(range(100))
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == sha256_bytes(content)
