"""An ONNX model on disk: one file or, where its weights go past what protobuf holds, two.

variants/fp32.onnx         the graph, and the weights where they fit
variants/fp32.onnx.data    the weights that do not, in ONNX's external format

Its first output is ``logits``, float32 of shape (rows, classes). It may have a second,
``features``, float32 of shape (rows, width): what the classifier's head reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgewright.manifest import sha256_bytes, sha256_file

DATA_SUFFIX: Final = ".data"
LOGITS: Final = "logits"
FEATURES: Final = "features"


def data_file(path: Path) -> Path:
    """Where the weights of the model at ``path`` lie when they are not in it."""
    return path.with_name(path.name + DATA_SUFFIX)


def parts(path: Path) -> list[Path]:
    """The files of the model at ``path``, that one first."""
    data = data_file(path)
    return [path, data] if data.is_file() else [path]


def size_bytes(path: Path) -> int:
    """Bytes of all its files."""
    return sum(part.stat().st_size for part in parts(path))


def sha256(path: Path) -> str:
    """Identifies the model: the file's SHA-256 or, of two files, that of both digests."""
    digests = [sha256_file(part) for part in parts(path)]
    return digests[0] if len(digests) == 1 else sha256_bytes("\n".join(digests).encode())
