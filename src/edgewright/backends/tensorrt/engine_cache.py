"""Built engines on this host, by key: ``<digest>.engine``, and ``<digest>.json`` that vouches.

An engine that was cut off or altered is not loaded: TensorRT runs what it is given as machine code.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgewright.backends.tensorrt.builder import Built
from edgewright.backends.tensorrt.engine_key import EngineKey
from edgewright.manifest import canonical_json, replace_file, sha256_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineCache:
    """A folder of engines and timing caches; created when the first is stored."""

    folder: Path

    def engine(self, key: EngineKey) -> bytes | None:
        """The engine of this key; None where there is none, or what lies there is damaged."""
        recorded = self._record(self._file(key, ".json"))
        if recorded is None:
            return None
        file = self._file(key, ".engine")
        content = file.read_bytes() if file.is_file() else b""
        if recorded[0] != key or sha256_bytes(content) != recorded[1]:
            log.warning("%s is damaged, so it is not used", file)
            return None
        return content

    def timing_cache(self, key: EngineKey) -> bytes:
        """Timings of earlier builds on such a GPU; empty where there are none."""
        file = self._timing_file(key)
        return file.read_bytes() if file.is_file() else b""

    def store(self, key: EngineKey, built: Built) -> None:
        """Keep an engine and the timings of its build."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"key": key.to_json(), "sha256": sha256_bytes(built.engine)}
        replace_file(self._timing_file(key), built.timing_cache)
        replace_file(self._file(key, ".engine"), built.engine)
        replace_file(self._file(key, ".json"), canonical_json(record))

    def mismatch(self, key: EngineKey) -> tuple[str, ...]:
        """How the likest engine of the same file differs from ``key``; empty: there is none."""
        others = [other for other in self._keys() if other.onnx_sha256 == key.onnx_sha256]
        return min((key.differences(other) for other in others), key=len, default=())

    def _keys(self) -> Iterator[EngineKey]:
        for file in sorted(self.folder.glob("*.json")):
            recorded = self._record(file)
            if recorded is not None:
                yield recorded[0]

    def _record(self, file: Path) -> tuple[EngineKey, str] | None:
        """An engine's key and hash."""
        try:
            record = json.loads(file.read_bytes())
            return EngineKey.from_json(record["key"]), str(record["sha256"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            log.warning("%s is damaged, so its engine is not used", file)
            return None

    def _file(self, key: EngineKey, suffix: str) -> Path:
        return self.folder / f"{key.digest}{suffix}"

    def _timing_file(self, key: EngineKey) -> Path:
        return self.folder / f"timing-{key.timing_digest}.cache"
