"""Artifacts on disk: one folder, one manifest, one seal, written whole or not at all.

    manifest.json    deterministic: format, what it was made from, configuration, and the SHA-256
                     and size of every deterministic file. The same inputs give it byte for byte.
    (measured files) what a clock or a host had a say in: measurements, the choice, the report.
    seal.json        hashes of the manifest and of the measured files, and its own checksum, so that
                     a byte flipped anywhere is found and named.

A folder is written under a temporary name beside its target, flushed, and renamed.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from edgewright.errors import ArtifactNotFoundError, ConfigError, IntegrityError

MANIFEST_FILE: Final = "manifest.json"
SEAL_FILE: Final = "seal.json"
_CHUNK_BYTES: Final = 1 << 20
HASHED_AT_ONCE: Final = 4


@dataclass(frozen=True)
class ArtifactKind:
    """What a folder says it is: the format's name, its version, and the noun for messages."""

    format: str
    version: int
    noun: str
    made_by: str  # the command to run when there is none


@dataclass(frozen=True)
class Artifact:
    """A folder whose manifest has been read; ``manifest_sha256`` identifies its content."""

    path: Path
    manifest: Mapping[str, Any]
    manifest_sha256: str


def canonical_json(value: object) -> bytes:
    """``value`` as UTF-8 JSON with sorted keys: equal values give equal bytes; NaN is refused."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def sha256_bytes(data: bytes) -> str:
    """Hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def replace_file(file: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader, or a crash, leaves the old bytes or the new.

    Several processes may write the same file; the last one's bytes stay.
    """
    staging = _sibling(file, "partial")
    try:
        with staging.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        staging.replace(file)
        _sync_directory(file.parent)
    finally:
        staging.unlink(missing_ok=True)


def _is_artifact(folder: Path) -> bool:
    return (folder / SEAL_FILE).is_file()


def refuse_existing(
    target: Path, *, overwrite: bool, replaceable: Callable[[Path], bool] = _is_artifact
) -> None:
    """Fail before any work is done when ``target`` may not be written.

    Args:
        target: where a folder is to be.
        overwrite: whether one may be replaced that is ``replaceable``, or empty.
        replaceable: whether a folder is of the kind that is written.

    Raises:
        ConfigError: it exists without ``overwrite``, or it is not an artifact of ours and so must
            not be deleted.
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise ConfigError(f"{target} exists already; choose another path or pass --overwrite")
    if target.is_symlink():
        raise ConfigError(
            f"{target} is a symbolic link, which --overwrite will not replace; "
            "give the path it points to, or another"
        )
    ours = target.is_dir() and (replaceable(target) or not any(target.iterdir()))
    if not ours:
        raise ConfigError(
            f"{target} is not an edgewright artifact, so --overwrite will not delete it; "
            "choose another path"
        )


@contextmanager
def new_folder(
    target: Path,
    *,
    overwrite: bool = False,
    replaceable: Callable[[Path], bool] = _is_artifact,
) -> Iterator[Path]:
    """A staging folder that becomes ``target`` when the block ends well and vanishes otherwise.

    Raises:
        ConfigError: as ``refuse_existing``.
    """
    check = partial(refuse_existing, target, overwrite=overwrite, replaceable=replaceable)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clean_up_after_killed_runs(target)
    check()
    staging = _sibling(target, "partial")
    staging.mkdir()
    try:
        with _held(staging):
            yield staging
            _sync_tree(staging)
            check()
            _swap_in(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def seal(
    folder: Path,
    kind: ArtifactKind,
    body: Mapping[str, Any],
    measured: Mapping[str, Callable[[str], bytes]],
) -> str:
    """Write manifest.json, the measured files and seal.json over what lies in ``folder``.

    Args:
        folder: holds every deterministic file already.
        kind: the format that the manifest declares.
        body: the manifest's own fields; must be JSON, and free of times and measurements.
        measured: file name -> function of the manifest's hash that gives the file's bytes, so that
            each can cite the manifest it belongs to.

    Returns:
        The manifest's SHA-256, in hexadecimal.
    """
    files = {
        name: {"sha256": sha256_file(folder / name), "size": (folder / name).stat().st_size}
        for name in _files_below(folder)
    }
    manifest = {**body, "format": kind.format, "format_version": kind.version, "files": files}
    manifest_bytes = canonical_json(manifest)
    digest = sha256_bytes(manifest_bytes)
    (folder / MANIFEST_FILE).write_bytes(manifest_bytes)
    seals = {MANIFEST_FILE: digest}
    for name, render in measured.items():
        content = render(digest)
        (folder / name).write_bytes(content)
        seals[name] = sha256_bytes(content)
    (folder / SEAL_FILE).write_bytes(_sealed(seals))
    return digest


def measured_json(value: Mapping[str, Any]) -> Callable[[str], bytes]:
    """A measured JSON file for ``seal``: ``value`` with the manifest's hash added."""
    return lambda digest: canonical_json({**value, "manifest_sha256": digest})


def read_artifact(path: Path, kind: ArtifactKind) -> Artifact:
    """Read the manifest at ``path`` and check it against the seal, without reading the other files.

    Raises:
        ArtifactNotFoundError: nothing there, or an artifact of another kind or a newer format.
        IntegrityError: the manifest or the seal was altered.
    """
    if not path.is_dir():
        raise ArtifactNotFoundError(f"no {kind.noun} at {path}; make one with `{kind.made_by}`")
    if not (path / MANIFEST_FILE).is_file() and not (path / SEAL_FILE).is_file():
        raise ArtifactNotFoundError(
            f"{path} holds no {MANIFEST_FILE}, so it is not a {kind.noun}; "
            f"make one with `{kind.made_by}`"
        )
    artifact = _read_any(path)
    found = artifact.manifest.get("format")
    if found != kind.format:
        raise ArtifactNotFoundError(
            f"{path} is an {found}, and a {kind.noun} is wanted; make one with `{kind.made_by}`"
        )
    if artifact.manifest.get("format_version") != kind.version:
        raise ArtifactNotFoundError(
            f"{path} has {kind.noun} format {artifact.manifest.get('format_version')}, and this "
            f"edgewright reads format {kind.version}; make it again with `{kind.made_by}`"
        )
    return artifact


def verify(path: Path, *, files_at_once: int = HASHED_AT_ONCE) -> Artifact:
    """Check every byte of an artifact of any kind, on as many threads as told.

    Raises:
        ArtifactNotFoundError: there is no artifact at ``path``.
        IntegrityError: names the first file that is altered, missing or unexpected.
    """
    if not path.is_dir():
        raise ArtifactNotFoundError(f"no folder at {path}; give that of a checkpoint or a bundle")
    if not (path / MANIFEST_FILE).is_file() and not (path / SEAL_FILE).is_file():
        raise ArtifactNotFoundError(
            f"{path} holds neither {MANIFEST_FILE} nor {SEAL_FILE}: not an edgewright artifact; "
            "give the folder of a checkpoint or a bundle, such as REPOSITORY/news/1"
        )
    artifact = _read_any(path)
    seals = _read_seal(path)
    expected = dict(seals)
    for name, entry in artifact.manifest["files"].items():
        expected[name] = entry["sha256"]
        _check_size(path, name, entry["size"])
    # Hashing leaves the other threads running; the results come in the order of the files.
    with ThreadPoolExecutor(files_at_once) as pool:
        in_turn = pool.map if files_at_once > 1 else map
        for _ in in_turn(lambda each: _check_digest(path, *each), expected.items()):
            pass
    for name in _files_below(path):
        if name not in expected and name != SEAL_FILE:
            raise IntegrityError(f"{path / name} is not part of the artifact; remove it")
    return artifact


def check_files(artifact: Artifact, names: Iterable[str]) -> None:
    """Check the bytes of some of a manifest's files, one after the other.

    Raises:
        IntegrityError: names the first that is altered or missing.
    """
    for name in names:
        _check_digest(artifact.path, name, artifact.manifest["files"][name]["sha256"])


def _read_any(path: Path) -> Artifact:
    seals = _read_seal(path)
    _check_digest(path, MANIFEST_FILE, seals.get(MANIFEST_FILE, ""))
    manifest = json.loads((path / MANIFEST_FILE).read_bytes())
    return Artifact(path=path, manifest=manifest, manifest_sha256=seals[MANIFEST_FILE])


def _sealed(seals: Mapping[str, str]) -> bytes:
    checksum = sha256_bytes(canonical_json(seals))
    return canonical_json({"files": seals, "checksum": checksum})


def _read_seal(path: Path) -> dict[str, str]:
    file = path / SEAL_FILE
    if not file.is_file():
        raise IntegrityError(f"{file} is missing; fetch or make the artifact again")
    content = file.read_bytes()
    try:
        seals = json.loads(content)["files"]
        intact = content == _sealed(seals)
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise IntegrityError(f"{file} was altered; fetch or make the artifact again")
    return dict(seals)


def _check_size(path: Path, name: str, size: int) -> None:
    file = path / name
    if not file.is_file():
        raise IntegrityError(f"{file} is missing; fetch or make the artifact again")
    if file.stat().st_size != size:
        raise IntegrityError(
            f"{file} has {file.stat().st_size} bytes where {size} were sealed; "
            "fetch or make the artifact again"
        )


def _check_digest(path: Path, name: str, digest: str) -> None:
    file = path / name
    if not file.is_file():
        raise IntegrityError(f"{file} is missing; fetch or make the artifact again")
    if sha256_file(file) != digest:
        raise IntegrityError(f"{file} was altered; fetch or make the artifact again")


def _files_below(folder: Path) -> list[str]:
    """Every file below ``folder``, relative, sorted, seals and manifest left out of a fresh one."""
    return sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() or file.is_symlink()
    )


def _sync_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap_in(staging: Path, target: Path) -> None:
    """Rename ``staging`` to ``target``; the old one, where there is one, goes last."""
    if not target.exists():
        staging.rename(target)
        _sync_directory(target.parent)
        return
    replaced = _sibling(target, "replaced")
    with _held(target):
        target.rename(replaced)
        try:
            staging.rename(target)
        except OSError:
            replaced.rename(target)
            raise
        _sync_directory(target.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(target: Path, purpose: str) -> Path:
    """A new hidden name beside ``target``, on the same file system."""
    return target.parent / f".{target.name}.{purpose}-{secrets.token_hex(4)}"


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, whatever it is renamed to; it goes when the process dies.

    A process id would not tell the living from the dead: every container has its process 1.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no such locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_abandoned(folder: Path) -> bool:
    """Whether its writer is dead; where locks do not work nobody can tell, and it stays."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _clean_up_after_killed_runs(target: Path) -> None:
    """Give back what a run was replacing when it was killed, and remove what it was writing."""
    for replaced in target.parent.glob(f".{glob.escape(target.name)}.replaced-*"):
        if not _is_abandoned(replaced):
            continue
        if not os.path.lexists(target):
            replaced.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    for unfinished in target.parent.glob(f".{glob.escape(target.name)}.partial-*"):
        if _is_abandoned(unfinished):
            shutil.rmtree(unfinished, ignore_errors=True)
