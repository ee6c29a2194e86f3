"""Activations of rows on disk: appended in shards that never change, read through memory maps.

    <root>/<identity>/identity.json          what the activations are of
                      <shard>.npy            one flat array: the rows' items, one row after another
                      <shard>.json           keys and lengths of its rows, CRC-32 of the array

A shard is written whole, array first: one without its .json is not there. So a fill that is killed
loses at most the shard in work, rows that come later are appended, and several runs can read and
append at once; where two append the same row, either will do.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgewright.manifest import canonical_json, sha256_bytes

Array = NDArray[Any]  # (items, ...) of one row

_IDENTITY_FILE: Final = "identity.json"
_FORMAT: Final = 1
_UNFINISHED: Final = ".part"
_STALE_S: Final = 24 * 3600.0  # an unfinished file of this age has no writer any more


@dataclass(frozen=True, eq=False)
class _Shard:
    """Rows of one file; ``starts`` has one entry more than there are keys."""

    path: Path
    keys: Sequence[str]
    starts: NDArray[np.int64]
    items: Array


class ActivationStore:
    """The activations of one frozen part, by the key of a row's content."""

    def __init__(self, root: Path, identity: Mapping[str, Any]) -> None:
        """Open what there is below ``root`` for ``identity``; OSError where it cannot be made.

        ``identity`` is whatever the activations depend on beside the row's content; another
        identity is another folder.
        """
        record = {"format": _FORMAT, **identity}
        self.folder = _folder(root, record)
        self.damaged: list[Path] = []  # shards found unusable, and removed
        self._shards: list[_Shard] = []
        self._places: dict[str, tuple[int, int]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / _IDENTITY_FILE, canonical_json(record))
        os.utime(self.folder)  # the last use, for ``evict``
        self.refresh()
        _remove_stale(self.folder)

    @classmethod
    def is_there(cls, root: Path, identity: Mapping[str, Any]) -> bool:
        """Whether an earlier run has made it."""
        return (_folder(root, {"format": _FORMAT, **identity}) / _IDENTITY_FILE).is_file()

    def __len__(self) -> int:
        return len(self._places)

    def refresh(self) -> None:
        """See the shards that others have appended by now."""
        known = {shard.path for shard in self._shards}
        for path in sorted(self.folder.glob("*.json")):
            if path.name != _IDENTITY_FILE and path not in known:
                self._open(path)

    def missing(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Places in ``keys`` of rows that are not there, ascending, each key once."""
        seen: set[str] = set()
        places = []
        for place, key in enumerate(keys):
            if key not in self._places and key not in seen:
                seen.add(key)
                places.append(place)
        return np.array(places, np.int64)

    def append(self, keys: Sequence[str], arrays: Iterable[Array]) -> None:
        """Add rows as one shard, whole or not at all.

        Args:
            keys: of the rows.
            arrays: one of shape (items, ...) a row, of one dtype, alike but for the items.

        Raises:
            OSError: it cannot be written; nothing of it is left behind.
        """
        rows = list(arrays)
        items = np.concatenate(rows)
        path = self.folder / f"{uuid.uuid4().hex}.json"
        record = {
            "keys": list(keys),
            "lengths": [len(row) for row in rows],
            "crc32": _crc32(items),
        }
        try:
            _write_array(_array_path(path), items)
            _write(path, json.dumps(record).encode())
        except OSError:
            _remove(path)
            raise
        self._open(path)

    def read(self, key: str) -> Array:
        """One row as it was appended, a read-only view of the file; KeyError where it is not."""
        number, row = self._places[key]
        shard = self._shards[number]
        return shard.items[shard.starts[row] : shard.starts[row + 1]]

    def _open(self, path: Path) -> None:
        try:
            record = json.loads(path.read_bytes())
            items = np.load(_array_path(path), mmap_mode="r", allow_pickle=False)
            starts = np.concatenate([[0], np.cumsum(record["lengths"], dtype=np.int64)])
            is_whole = starts[-1] == len(items) and len(record["keys"]) == len(starts) - 1
            if not is_whole or _crc32(items) != record["crc32"]:
                raise ValueError("the array is not the one that was written")
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            self.damaged.append(path)
            _remove(path)
            return
        for row, key in enumerate(record["keys"]):
            self._places.setdefault(key, (len(self._shards), row))
        self._shards.append(_Shard(path, record["keys"], starts, items))


def evict(root: Path, limit_bytes: int, keep: Sequence[Path]) -> list[Path]:
    """Remove the stores used longest ago until the rest take at most ``limit_bytes``.

    Args:
        root: of the stores.
        limit_bytes: of all stores together.
        keep: folders of the stores in use, which stay.

    Returns:
        The folders removed.
    """
    used: dict[Path, float] = {}
    for folder in root.glob("*/"):
        if (folder / _IDENTITY_FILE).is_file():
            with suppress(FileNotFoundError):
                used[folder] = folder.stat().st_mtime
    sizes = {folder: _size(folder) for folder in used}
    removed = []
    for folder in sorted(used, key=lambda folder: used[folder]):
        if sum(sizes.values()) <= limit_bytes:
            break
        if folder not in keep:
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]
            removed.append(folder)
    return removed


def _size(folder: Path) -> int:
    """Bytes of a store, whose files other runs may rename or remove meanwhile."""
    size = 0
    with suppress(FileNotFoundError):
        for file in folder.iterdir():
            with suppress(FileNotFoundError):
                size += file.stat().st_size
    return size


def _folder(root: Path, record: Mapping[str, Any]) -> Path:
    return root / sha256_bytes(canonical_json(record))[:32]


def _crc32(items: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(items).view(np.uint8).data)


def _array_path(path: Path) -> Path:
    return path.with_suffix(".npy")


def _write_array(path: Path, items: Array) -> None:
    part = path.with_name(path.name + _UNFINISHED)
    try:
        with part.open("wb") as file:
            np.save(file, items, allow_pickle=False)
            _flush(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_UNFINISHED}")
    try:
        with part.open("wb") as file:
            file.write(content)
            _flush(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _remove(path: Path) -> None:
    """Take a shard away; the .json first, for that is what makes it one."""
    path.unlink(missing_ok=True)
    _array_path(path).unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Remove what killed writers left: parts, and arrays without their .json."""
    now = folder.stat().st_mtime
    for file in folder.iterdir():
        orphan = file.suffix == ".npy" and not file.with_suffix(".json").exists()
        if orphan or file.name.endswith(_UNFINISHED):
            try:
                if now - file.stat().st_mtime > _STALE_S:
                    file.unlink()
            except FileNotFoundError:
                continue  # another run finished or removed it
