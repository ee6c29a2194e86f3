"""The load generator in C: built here, told what to send, and what it says it found.

A generator in Python takes 300 us of a core for a request, which the server on the same machine
then lacks; this one takes about 10 to 50.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.environment import ROOT

_SOURCES: Final = ROOT / "benchmarks" / "load_generator"
_BUILT: Final = ROOT / "build" / "benchmarks" / "load"
_COMPILE: Final = ("gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror")
_PATIENCE_S: Final = 60  # beyond the seconds that were asked for


class LoadGeneratorError(Exception):
    """The load generator cannot be built here, or did not run; the message says what to do."""


@dataclass(frozen=True)
class Load:
    """What is sent, and how.

    Attributes:
        protocol: "grpc", unary over HTTP/2, or "http", a POST over HTTP/1.1; both without TLS.
        target: HOST:PORT.
        path: of the HTTP request; of gRPC as "/package.Service/Method".
        payloads: a file that ``write_payloads`` wrote; its bodies are sent in turn.
        headers: beyond those that the protocol asks for.
        callers: each has one request in flight at most.
        connections: that the callers share; over "http" every caller has its own.
        seconds: that count; ``warmup`` seconds before them do not.
        drain: seconds that answers may take once nothing more falls due.
        rate: requests a second by the clock, whose latency counts from when they were due;
            0 for a closed loop, where a caller sends as soon as it is answered.
    """

    protocol: str
    target: str
    path: str
    payloads: Path
    headers: Mapping[str, str] = field(default_factory=dict)
    callers: int = 1
    connections: int = 8
    seconds: float = 5.0
    warmup: float = 1.0
    drain: float = 10.0
    rate: float = 0.0

    def arguments(self) -> list[str]:
        """Of the program."""
        named = (
            "protocol", "target", "path", "payloads", "callers", "connections", "seconds",
            "warmup", "drain", "rate",
        )  # fmt: skip
        told = [f"--{name}={getattr(self, name)}" for name in named]
        return told + [f"--header={name}:{value}" for name, value in self.headers.items()]


@dataclass(frozen=True)
class LoadResult:
    """What the requests that were due within the seconds that count came to.

    Attributes:
        answered: well: HTTP status 200, and of gRPC status 0 and one whole message.
        per_second: of those answered well.
        latency_ms: of those answered well: p50, p90, p99, p999, max, mean; empty without any.
        errors: how many by what went wrong: "grpc 8", "http 503", "closed: by the server",
            "connect: Connection refused", "unanswered", "unsent" (due, but no caller was free).
        sent: all requests, those of the warm-up among them.
        cpu_seconds: of the generator itself.
    """

    answered: int
    per_second: float
    latency_ms: Mapping[str, float]
    errors: Mapping[str, int]
    sent: int
    cpu_seconds: float

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> LoadResult:
        """Of what the program prints."""
        return cls(
            record["answered"],
            record["per_second"],
            record["latency_ms"] or {},
            record["errors"],
            record["sent"],
            record["cpu_seconds"],
        )


def write_payloads(file: Path, bodies: Sequence[bytes]) -> Path:
    """Bodies for a load, each behind its length."""
    file.write_bytes(b"".join(struct.pack("<I", len(body)) + body for body in bodies))
    return file


def build_load_generator(target: Path = _BUILT) -> Path:
    """The program, compiled where its sources are younger.

    Raises:
        LoadGeneratorError: a compiler or the library for HTTP/2 is missing, or the sources do not
            compile.
    """
    sources = sorted(_SOURCES.glob("*.[ch]"))
    if target.exists() and target.stat().st_mtime > max(each.stat().st_mtime for each in sources):
        return target
    if shutil.which(_COMPILE[0]) is None or not _compiles("#include <nghttp2/nghttp2.h>"):
        raise LoadGeneratorError(
            "the load generator needs gcc and nghttp2: apt-get install gcc libnghttp2-dev"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    files = [str(each) for each in sources if each.suffix == ".c"]
    done = subprocess.run(
        [*_COMPILE, *files, "-lnghttp2", "-o", str(target)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise LoadGeneratorError(f"the load generator does not compile:\n{done.stderr}")
    return target


def run_load(load: Load, program: Path) -> LoadResult:
    """Send it, wait for the end, and tell what came of it.

    Raises:
        LoadGeneratorError: the program refused what it was told.
    """
    done = subprocess.run(
        [str(program), *load.arguments()],
        capture_output=True, text=True, check=False,
        timeout=load.warmup + load.seconds + load.drain + _PATIENCE_S,
    )  # fmt: skip
    if done.returncode:
        raise LoadGeneratorError(done.stderr.strip() or f"exit {done.returncode}")
    return LoadResult.from_json(json.loads(done.stdout))


def _compiles(line: str) -> bool:
    tried = subprocess.run(
        [*_COMPILE, "-fsyntax-only", "-x", "c", "-"],
        input=line, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return tried.returncode == 0
