"""``edgewright serve`` as a user starts it, and what it says when it is ready."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import RunFailedError


@dataclass(frozen=True)
class Served:
    """A server that is ready.

    Attributes:
        ready: what it printed: its ports, its models.
    """

    pid: int
    ready: dict[str, Any]

    @property
    def target(self) -> str:
        """HOST:PORT of its gRPC port."""
        return f"127.0.0.1:{self.ready['port']}"


@contextmanager
def served(repository: Path, *options: str) -> Iterator[Served]:
    """A server on free ports of this host, ended afterwards.

    Raises:
        RunFailedError: it ends before it is ready; it has said why.
    """
    ports = ["--host", "127.0.0.1", "--port", "0", "--metrics-port", "0", "--json"]
    command = [sys.executable, "-m", "edgewright", "serve", str(repository), *ports, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            if not line:
                raise RunFailedError(f"the server ended with exit {server.wait()}")
            yield Served(server.pid, json.loads(line))
        finally:
            server.terminate()
