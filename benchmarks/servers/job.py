"""What a peer's server is told; read in its own environment, where edgewright is not."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

JOB_VARIABLE: Final = "SERVE_JOB"  # names a file


@dataclass(frozen=True)
class ServeJob:
    """A model and how to serve it.

    Attributes:
        model: ONNX file.
        preprocessing: folder with tokenizer.json and preprocess.json.
        session_options: configuration entries of ONNX Runtime that go with the file.
        workers: processes, or instances, that compute.
        threads: of the session in each.
        batch: rows that are computed together at most.
        delay_ms: that a batch waits to fill; 0 for none.
        extra: what only this peer knows.
    """

    model: str
    preprocessing: str
    session_options: Mapping[str, str]
    port: int
    workers: int
    threads: int
    batch: int
    delay_ms: float
    extra: Mapping[str, Any]

    def write(self, file: Path) -> dict[str, str]:
        """Leave it in a file; what to set in the server's environment."""
        file.write_text(json.dumps(asdict(self)))
        return {JOB_VARIABLE: str(file)}

    @classmethod
    def read(cls) -> ServeJob:
        """The inverse of ``write``, in the server."""
        return cls(**json.loads(Path(os.environ[JOB_VARIABLE]).read_bytes()))
