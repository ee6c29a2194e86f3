"""The repository: versions are added, never changed, and one of them is current."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgewright.bundle import BUNDLE, Bundle, Variant
from edgewright.errors import (
    ArtifactNotFoundError,
    ConfigError,
    IntegrityError,
    ModelNotFoundError,
)
from edgewright.manifest import ArtifactKind, measured_json, new_folder, seal
from edgewright.repository import CURRENT_FILE, Repository

VARIANT = Variant(
    name="onnxruntime-fp32",
    backend="onnxruntime",
    file="variants/model.onnx",
    precision="fp32",
    batch_invariant=True,
    size_bytes=3,
    search_accuracy=1.0,
)


def make_bundle(
    path: Path,
    weights: bytes = b"abc",
    kind: ArtifactKind = BUNDLE,
    labels: Sequence[str] = ("a",),
) -> Path:
    with new_folder(path) as staging:
        (staging / "variants").mkdir()
        (staging / VARIANT.file).write_bytes(weights)
        body = {"task": "text-classification", "labels": [*labels], "variants": [VARIANT.to_json()]}
        choice = measured_json({"variant": VARIANT.name})
        seal(staging, kind, body, {"choice.json": choice})
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def weights(bundle: Bundle) -> bytes:
    return (bundle.path / VARIANT.file).read_bytes()


def test_a_published_bundle_is_current_and_sound(bundle: Path, repository: Repository) -> None:
    assert repository.publish(bundle, "news") == 1
    assert repository.models() == ["news"]
    assert repository.current("news") == 1
    published = repository.bundle("news", 1)
    assert published.artifact.manifest_sha256 == Bundle.open(bundle).artifact.manifest_sha256
    assert published.path == repository.path / "news" / "1"
    assert published.chosen == VARIANT


def test_a_disk_without_room_is_told_once_and_leaves_no_version(
    bundle: Path, repository: Repository
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, hard))  # bytes of a file
    try:
        with pytest.raises(
            OSError, match="cannot be copied: .*File too large.*; make room"
        ) as told:
            repository.publish(bundle, "news")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(told.value).count("File too large") == 1
    assert repository.models() == []
    assert repository.publish(bundle, "news") == 1


def test_versions_count_up_and_the_old_ones_stay(tmp_path: Path, repository: Repository) -> None:
    for number in (1, 2, 3):
        one = make_bundle(tmp_path / f"b{number}", weights=b"%d" % number)
        assert repository.publish(one, "news") == number
    assert repository.versions("news") == [1, 2, 3]
    assert [weights(repository.bundle("news", each)) for each in (1, 2, 3)] == [b"1", b"2", b"3"]
    assert repository.current("news") == 3


def test_versions_are_ordered_as_numbers(bundle: Path, repository: Repository) -> None:
    for _ in range(11):
        repository.publish(bundle, "news")
    assert repository.versions("news") == list(range(1, 12))


def test_rolling_back_goes_one_back_each_time_and_deletes_nothing(
    bundle: Path, repository: Repository
) -> None:
    for _ in range(3):
        repository.publish(bundle, "news")
    assert [repository.rollback("news"), repository.rollback("news")] == [2, 1]
    assert repository.current("news") == 1
    assert repository.versions("news") == [1, 2, 3]
    with pytest.raises(ModelNotFoundError, match="no earlier version"):
        repository.rollback("news")
    assert repository.current("news") == 1


def test_a_version_that_was_looked_at_is_the_one_gone_back_to(
    bundle: Path, repository: Repository
) -> None:
    repository.publish(bundle, "news")
    repository.publish(bundle, "news")
    looked_at = repository.previous("news")
    repository.publish(bundle, "news")  # by somebody else, meanwhile
    assert repository.rollback("news", looked_at) == 1
    assert repository.current("news") == 1
    with pytest.raises(ModelNotFoundError, match="version 2 .* somebody else"):
        repository.rollback("news", 2)
    assert repository.current("news") == 1


def test_after_a_rollback_the_next_version_is_new_and_skips_the_bad_one(
    bundle: Path, repository: Repository
) -> None:
    repository.publish(bundle, "news")
    repository.publish(bundle, "news")
    repository.rollback("news")
    assert repository.publish(bundle, "news") == 3
    assert repository.rollback("news") == 1


def test_a_rollback_passes_over_versions_that_were_removed(
    bundle: Path, repository: Repository
) -> None:
    for _ in range(3):
        repository.publish(bundle, "news")
    (repository.path / "news" / "2").rename(repository.path / "gone")
    assert repository.rollback("news") == 1
    assert repository.current("news") == 1


def test_without_a_pointer_the_highest_version_is_current(
    bundle: Path, repository: Repository
) -> None:
    repository.publish(bundle, "news")
    repository.publish(bundle, "news")
    (repository.path / "news" / CURRENT_FILE).unlink()
    assert repository.current("news") == 2
    repository.publish(bundle, "news")
    assert repository.rollback("news") == 2


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"history": null}', b'{"history": "12"}',
        b'{"history": ["1"]}', b'{"history": [1.5]}', b'{"history": [Infinity]}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_broken_pointer_is_named_and_nothing_is_guessed(
    bundle: Path, repository: Repository, content: bytes
) -> None:
    repository.publish(bundle, "news")
    pointer = repository.path / "news" / CURRENT_FILE
    pointer.write_bytes(content)
    for use in (
        repository.current,
        repository.rollback,
        lambda name: repository.publish(bundle, name),
    ):
        with pytest.raises(IntegrityError, match=r"current\.json was altered; remove it"):
            use("news")
    assert repository.versions("news") == [1]
    assert pointer.read_bytes() == content


def test_a_pointer_to_a_missing_version_says_which_there_are(
    bundle: Path, repository: Repository
) -> None:
    repository.publish(bundle, "news")
    repository.publish(bundle, "news")
    (repository.path / "news" / "2").rename(repository.path / "gone")
    missing = "names version 2, which is missing; there are: 1; put it back, or make another"
    with pytest.raises(IntegrityError, match=missing):
        repository.current("news")
    with pytest.raises(IntegrityError, match=missing):
        repository.set_traffic("news", None, 1)
    repository.unload("news")
    assert repository.pointer("news").unloaded
    repository.make_current("news", 1)
    assert (repository.current("news"), repository.pointer("news").unloaded) == (1, False)


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../x", "/etc", "a/b", "a\\b", "News", "-x", ".x", "_x", "a b", "a\n", "ä",
        "a" * 64, "a\0b", "~", "${HOME}",
    ],
)  # fmt: skip
def test_names_that_fit_no_folder_or_url_are_refused(
    tmp_path: Path, bundle: Path, repository: Repository, name: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="--name"):
        repository.publish(bundle, name)
    assert sorted(tmp_path.rglob("*")) == before
    repository.publish(bundle, "news")
    for use in (repository.versions, repository.current, repository.rollback):
        with pytest.raises(ModelNotFoundError):
            use(name)
    with pytest.raises(ModelNotFoundError):
        repository.bundle(name, 1)


@pytest.mark.parametrize("name", ["a", "0", "news-2.1_b", "a" * 63])
def test_names_that_fit_are_taken(bundle: Path, repository: Repository, name: str) -> None:
    repository.publish(bundle, name)
    assert repository.models() == [name]


def test_unknown_models_and_versions_are_told_with_what_there_is(
    bundle: Path, repository: Repository
) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no repository at .*`edgewright publish BUNDLE"):
        repository.models()
    repository.publish(bundle, "news")
    with pytest.raises(ModelNotFoundError, match=r"no model 'mail'.*it holds: news"):
        repository.versions("mail")
    for version in (0, -1, 2):
        with pytest.raises(ModelNotFoundError, match="there are: 1"):
            repository.bundle("news", version)


def test_what_is_no_version_is_passed_over(bundle: Path, repository: Repository) -> None:
    repository.publish(bundle, "news")
    news = repository.path / "news"
    for junk in ("0", "01", "-2", "2.0", "²", "v3", ".4.partial-ab", "9" * 30, "lost+found"):
        (news / junk).mkdir()
    (news / "5").write_text("a file")
    (repository.path / "README").write_text("x")
    (repository.path / "empty").mkdir()
    (repository.path / "News" / "1").mkdir(parents=True)
    assert repository.versions("news") == [1]
    assert repository.models() == ["news"]
    assert repository.publish(bundle, "news") == 2


def test_only_a_sound_bundle_is_published(
    tmp_path: Path, bundle: Path, repository: Repository
) -> None:
    with pytest.raises(ArtifactNotFoundError, match="edgewright optimize"):
        repository.publish(tmp_path / "none", "news")
    rejected = make_bundle(
        tmp_path / "rejected", kind=ArtifactKind("edgewright.rejection", 1, "rejection", "x")
    )
    with pytest.raises(ArtifactNotFoundError, match="a bundle is wanted"):
        repository.publish(rejected, "news")
    (bundle / VARIANT.file).write_bytes(b"abd")
    with pytest.raises(IntegrityError, match=r"model\.onnx was altered"):
        repository.publish(bundle, "news")
    assert not repository.path.exists()


def test_a_version_that_was_altered_is_not_served(bundle: Path, repository: Repository) -> None:
    repository.publish(bundle, "news")
    (repository.path / "news/1" / VARIANT.file).write_bytes(b"abd")
    with pytest.raises(IntegrityError, match=r"model\.onnx was altered"):
        repository.bundle("news", 1)


def test_a_failed_publication_changes_nothing(
    bundle: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.publish(bundle, "news")

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copytree", no_space)
        with pytest.raises(OSError, match="No space left"):
            repository.publish(bundle, "news")
    assert repository.versions("news") == [1]
    assert repository.current("news") == 1
    assert repository.publish(bundle, "news") == 2


def test_threads_that_publish_at_once_lose_no_version(bundle: Path, repository: Repository) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: repository.publish(bundle, "news"), range(16)))
    assert sorted(versions) == list(range(1, 17)) == repository.versions("news")
    assert repository.current("news") == 16
    assert [repository.rollback("news") for _ in range(15)] == list(range(15, 0, -1))


def test_processes_that_publish_at_once_lose_no_version(
    bundle: Path, repository: Repository
) -> None:
    script = (
        "import sys; from pathlib import Path; from edgewright.repository import Repository\n"
        "for _ in range(5): Repository(Path(sys.argv[2])).publish(Path(sys.argv[1]), 'news')"
    )
    command = [sys.executable, "-c", script, str(bundle), str(repository.path)]
    writers = [subprocess.Popen(command) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert repository.versions("news") == list(range(1, 16))
    assert [repository.rollback("news") for _ in range(14)] == list(range(14, 0, -1))
