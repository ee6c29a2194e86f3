"""Artifacts on disk: what is sealed is read back, and no byte can change unseen."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_artifact import BODY, FILES, KIND, files_of, write

from edgewright import manifest
from edgewright.errors import ArtifactNotFoundError, IntegrityError
from edgewright.manifest import (
    MANIFEST_FILE,
    SEAL_FILE,
    ArtifactKind,
    canonical_json,
    new_folder,
    read_artifact,
    sha256_bytes,
    sha256_file,
    verify,
)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "sample"
    with new_folder(path) as staging:
        write(staging)
    return path


def test_one_file_at_a_time_is_hashed_on_the_thread_that_asks(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()

    def noting(path: Path) -> str:
        threads.add(threading.get_ident())
        return sha256_file(path)

    monkeypatch.setattr(manifest, "sha256_file", noting)
    verify(artifact, files_at_once=1)
    assert threads == {threading.get_ident()}


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
        with pytest.raises(ArtifactNotFoundError, match="no folder at|not an edgewright artifact"):
            verify(path)


def test_another_kind_or_format_is_told_by_name(artifact: Path) -> None:
    bundle = ArtifactKind("edgewright.bundle", 1, "bundle", "edgewright optimize")
    with pytest.raises(ArtifactNotFoundError, match=r"is an edgewright\.sample, and a bundle"):
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


def test_a_copy_is_as_good_as_the_original(artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    assert verify(copy).manifest_sha256 == verify(artifact).manifest_sha256


def test_hashing_reads_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_CHUNK_BYTES", 7)
    content = bytes(range(100))
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == sha256_bytes(content)
